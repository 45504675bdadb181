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
    """N(mean(s), std^2), or tanh of it; the standard deviation is the same in every state.

    The output layer starts at a tenth of the other layers' bounds, so that first actions are near 0.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a (taken from the dataset by the CLI).
        hidden_dims: sizes of the hidden layers.
        layer_norm: whether hidden layers end in a LayerNorm.
        learned_std: learn one standard deviation per action dimension, started at 1; false keeps it at 1.
        tanh_squash: squash actions with tanh instead of clipping them to [-1, 1].

    Raises:
        ValueError: there is no hidden layer, or a size of one is below 1.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (512, 512, 512, 512),
        layer_norm: bool = False,
        learned_std: bool = False,
        tanh_squash: bool = False,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.tanh_squash = tanh_squash
        self.mean_network = MLP(observation_dim, hidden_dims, action_dim, layer_norm)
        nn.init.xavier_uniform_(self.mean_network.linear_layers[-1].weight, gain=FINAL_GAIN)
        self.log_std = nn.Parameter(torch.zeros(action_dim)) if learned_std else None

    def mean(self, observations: Tensor) -> Tensor:
        """Mean before any tanh: (..., n_s) -> (..., n_a)."""
        mean: Tensor = self.mean_network(observations)
        return mean

    def mode(self, observations: Tensor) -> Tensor:
        """The mean, squashed where the policy squashes, and not clipped: (..., n_s) -> (..., n_a)."""
        mean = self.mean(observations)
        return mean.tanh() if self.tanh_squash else mean

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
        actions = mean + temperature * self.std(mean) * noise
        return actions.tanh() if self.tanh_squash else actions.clamp(-1.0, 1.0)

    def log_prob(self, mean: Tensor, actions: Tensor) -> Tensor:
        """Log density of actions under the Gaussian before any tanh, (..., n_a) -> (...)."""
        std = self.std(mean)
        per_dimension = -0.5 * ((actions - mean) / std).square() - std.log() - 0.5 * math.log(2.0 * math.pi)
        return per_dimension.sum(dim=-1)
