"""The Gaussian policy of IQL and ReBRAC, as in FQL's release (arXiv 2502.02538)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tql_lightning.nn.mlp import MLP

LOG_STD_BOUNDS = (-5.0, 2.0)
FINAL_GAIN = 0.1  # the output layer's variance is scaled by 0.01


class GaussianPolicy(nn.Module):
    """N(mean(s), std^2), clipped to [-1, 1] while acting; the standard deviation is the same in every state.

    The output layer starts at a tenth of the other layers' bounds, so that first actions are near 0.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a (taken from the dataset by the CLI).
        hidden_dims: Sizes of the hidden layers.
        layer_norm: Whether hidden layers end in a LayerNorm.
        learned_std: Learn one standard deviation per action dimension, started at 1; false keeps it at 1.

    Raises:
        ValueError: There is no hidden layer, or a size of one is below 1.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (512, 512, 512, 512),
        layer_norm: bool = False,
        learned_std: bool = False,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.mean_network = MLP(observation_dim, hidden_dims, action_dim, layer_norm)
        nn.init.xavier_uniform_(self.mean_network.linear_layers[-1].weight, gain=FINAL_GAIN)
        self.log_std = nn.Parameter(torch.zeros(action_dim)) if learned_std else None

    def mean(self, observations: Tensor) -> Tensor:
        """Mean of the Gaussian: (..., n_s) -> (..., n_a)."""
        mean: Tensor = self.mean_network(observations)
        return mean

    def mode(self, observations: Tensor) -> Tensor:
        """The most likely action, not clipped: (..., n_s) -> (..., n_a)."""
        return self.mean(observations)

    def std(self, mean: Tensor) -> Tensor:
        """Standard deviation in every entry of ``mean``, in its shape."""
        if self.log_std is None:
            return torch.ones_like(mean)
        return self.log_std.clamp(*LOG_STD_BOUNDS).exp().expand_as(mean)

    def sample(self, mean: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Actions in [-1, 1] from a mean and standard normal noise, all (..., n_a).

        Args:
            mean: of `mean`.
            noise: standard normal.
            temperature: factor of the standard deviation.
        """
        return self.bounded(mean + temperature * self.std(mean) * noise)

    def bounded(self, actions: Tensor) -> Tensor:
        """What the environment is given of a draw of the Gaussian: clipped to [-1, 1]; (..., n_a) -> (..., n_a)."""
        return actions.clamp(-1.0, 1.0)

    def log_prob(self, mean: Tensor, actions: Tensor) -> Tensor:
        """Log density of actions under the Gaussian, (..., n_a) -> (...)."""
        std = self.std(mean)
        per_dimension = -0.5 * ((actions - mean) / std).square() - std.log() - 0.5 * math.log(2.0 * math.pi)
        return per_dimension.sum(dim=-1)


class SquashedGaussianPolicy(GaussianPolicy):
    """tanh of a Gaussian, whose actions reach no bound; see `GaussianPolicy` for its arguments."""

    def mode(self, observations: Tensor) -> Tensor:
        """Tanh of the mean: (..., n_s) -> (..., n_a)."""
        return self.mean(observations).tanh()

    def bounded(self, actions: Tensor) -> Tensor:
        """See `GaussianPolicy.bounded`; here tanh."""
        return actions.tanh()

    def log_prob(self, mean: Tensor, actions: Tensor) -> Tensor:
        """Log density of actions within (-1, 1), (..., n_a) -> (...)."""
        jacobian = (1.0 - actions.square()).log().sum(dim=-1)
        return super().log_prob(mean, actions.atanh()) - jacobian
