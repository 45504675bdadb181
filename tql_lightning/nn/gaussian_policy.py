"""The Gaussian policy of IQL and ReBRAC, as in FQL's release (arXiv 2502.02538)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tql_lightning.nn.mlp import MLP

LOG_STD_BOUNDS = (-5.0, 2.0)
FINAL_GAIN = 0.1  # scales the variance of the output layer's weights by 0.01


class GaussianPolicy(nn.Module):
    """N(mean(s), std^2), clipped to [-1, 1] while acting; the standard deviation is the same in every state.

    The output layer starts with a tenth of the other layers' gain, so that the first actions are near 0.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a (taken from the dataset by the CLI).
        hidden_dims: Sizes of the hidden layers.
        layer_norm: Whether hidden layers end in a LayerNorm.
        learned_std: Whether to learn one standard deviation per action dimension, starting at 1; false keeps it at 1.
        acting_temperature: Factor of the noise of actions; 0 acts by the mode, as in evaluation.
        exploration_temperature: The same factor in an online phase of IQL or ReBRAC.

    Raises:
        ValueError: There is no hidden layer, the size of one is below 1, or a temperature is out of its range.

    Examples:
        >>> GaussianPolicy(3, 1, hidden_dims=[32]).mode(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (512, 512, 512, 512),
        layer_norm: bool = False,
        learned_std: bool = False,
        acting_temperature: float = 0.0,
        exploration_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.acting_temperature, self.exploration_temperature = acting_temperature, exploration_temperature
        for name in ("acting_temperature", "exploration_temperature"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"policy.{name}: expected a finite number of at least 0, found {getattr(self, name)}")
        self.action_dim = action_dim
        self.mean_network = MLP(observation_dim, hidden_dims, action_dim, layer_norm)
        nn.init.xavier_uniform_(self.mean_network.linear_layers[-1].weight, gain=FINAL_GAIN)
        self.log_std = nn.Parameter(torch.zeros(action_dim)) if learned_std else None

    def mean(self, observations: Tensor) -> Tensor:
        """Mean of the Gaussian: (..., n_s) -> (..., n_a)."""
        mean: Tensor = self.mean_network(observations)
        return mean

    def mode(self, observations: Tensor) -> Tensor:
        """Returns the most likely action, not clipped: (..., n_s) -> (..., n_a)."""
        return self.mean(observations)

    def std(self, mean: Tensor) -> Tensor:
        """Returns the standard deviation of every entry of ``mean``, in its shape."""
        if self.log_std is None:
            return torch.ones_like(mean)
        return self.log_std.clamp(*LOG_STD_BOUNDS).exp().expand_as(mean)

    def sample(self, mean: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Samples actions in [-1, 1] from a mean and standard normal noise, all (..., n_a).

        Args:
            mean: Output of `mean`.
            noise: Standard normal noise.
            temperature: Factor of the standard deviation.
        """
        return self.bounded(mean + temperature * self.std(mean) * noise)

    def bounded(self, actions: Tensor) -> Tensor:
        """Maps samples of the Gaussian to actions by clipping to [-1, 1]; (..., n_a) -> (..., n_a)."""
        return actions.clamp(-1.0, 1.0)

    def log_prob(self, mean: Tensor, actions: Tensor) -> Tensor:
        """Log density of actions under the Gaussian, (..., n_a) -> (...)."""
        std = self.std(mean)
        per_dimension = -0.5 * ((actions - mean) / std).square() - std.log() - 0.5 * math.log(2.0 * math.pi)
        return per_dimension.sum(dim=-1)


class SquashedGaussianPolicy(GaussianPolicy):
    """The tanh of a Gaussian sample; see `GaussianPolicy` for the arguments.

    Examples:
        >>> SquashedGaussianPolicy(3, 1, hidden_dims=[32]).mode(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

    def mode(self, observations: Tensor) -> Tensor:
        """Returns the tanh of the mean: (..., n_s) -> (..., n_a)."""
        return self.mean(observations).tanh()

    def bounded(self, actions: Tensor) -> Tensor:
        """Maps samples of the Gaussian to actions by tanh."""
        return actions.tanh()

    def log_prob(self, mean: Tensor, actions: Tensor) -> Tensor:
        """Log density of actions within (-1, 1), (..., n_a) -> (...)."""
        jacobian = (1.0 - actions.square()).log().sum(dim=-1)
        return super().log_prob(mean, actions.atanh()) - jacobian
