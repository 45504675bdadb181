"""floq's critic: a flow that carries noise to a return (arXiv 2509.06863)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tql_lightning.nn.mlp import MLP
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.policy import MOST_STEPS
from tql_lightning.nn.residual_mlp import ResidualMLP
from tql_lightning.nn.sizes import require_sizes
from tql_lightning.nn.value_loss import gaussian_bins


class VelocityCritic(nn.Module):
    """Velocities u_k(s, a, x, t) of E members, each an MLP over (s, a, embedded x, embedded t).

    A member's return is x after Euler steps of its velocity from noise x_0; it is never clipped.

    Args:
        observation_dim: n_s.
        action_dim: n_a.
        low: Smallest return that the embedding of x resolves.
        high: Largest return that the embedding of x resolves.
        hidden_dims: Sizes of the hidden layers; with ``residual_blocks`` those of one block.
        num_critics: E, members of the ensemble.
        flow_steps: Number of Euler steps from noise to a return.
        layer_norm: Whether hidden layers have a LayerNorm.
        return_embedding: Embedding of x: "probabilities" of a Gaussian around x in ``num_bins - 1`` bins between
            ``low`` and ``high``, or "scalar" for (x - low) / (high - low).
        num_bins: Number of edges of the bins, equally spaced.
        sigma: Standard deviation of that Gaussian, in bins.
        time_embedding: Embedding of t: "cosine" for cos(t), "scalar" for t.
        residual_blocks: Number of blocks of a `ResidualMLP`; 0 for a plain `MLP`.
        norm_first: Whether a `ResidualMLP` normalises before the activation instead of after it.

    Raises:
        ValueError: An argument is out of its range; the message names it.

    Examples:
        >>> critic = VelocityCritic(3, 1, low=-10.0, high=0.0, hidden_dims=[32])
        >>> critic(torch.zeros(5, 3), torch.zeros(5, 1), x0=torch.zeros(5, 1)).shape
        torch.Size([5, 2])
    """

    edges: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        low: float,
        high: float,
        hidden_dims: Sequence[int] = (512, 512, 512, 512),
        num_critics: int = 2,
        flow_steps: int = 8,
        layer_norm: bool = True,
        return_embedding: Literal["probabilities", "scalar"] = "probabilities",
        num_bins: int = 51,
        sigma: float = 16.0,
        time_embedding: Literal["cosine", "scalar"] = "cosine",
        residual_blocks: int = 0,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        require_sizes("critic", num_critics=num_critics)
        require_sizes("critic", most=MOST_STEPS, flow_steps=flow_steps)
        require_sizes("critic", least=2, num_bins=num_bins)
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"critic: expected finite low below high, found {low} and {high}")
        if not 0.0 < sigma < math.inf:
            raise ValueError(f"critic.sigma: expected a finite number above 0, found {sigma}")
        for name, choice, choices in (
            ("return_embedding", return_embedding, ("probabilities", "scalar")),
            ("time_embedding", time_embedding, ("cosine", "scalar")),
        ):
            if choice not in choices:
                raise ValueError(f"critic.{name}: expected {' or '.join(choices)}, found {choice}")
        self.low, self.high = low, high
        self.flow_steps, self.num_critics = flow_steps, num_critics
        self.return_embedding, self.time_embedding = return_embedding, time_embedding
        width = (high - low) / (num_bins - 1)
        self.sigma = sigma * width
        # Computed in float32, as in the release: probabilities are small differences of erf and expose the rounding.
        edges = low + torch.arange(num_bins, dtype=torch.float32) * (high - low) / (num_bins - 1)
        self.register_buffer("edges", edges, persistent=False)
        in_dim = observation_dim + action_dim + (num_bins - 1 if return_embedding == "probabilities" else 1) + 1
        self.members = nn.ModuleList(
            ResidualMLP(in_dim, hidden_dims, 1, residual_blocks, layer_norm, norm_first)
            if residual_blocks
            else MLP(in_dim, hidden_dims, 1, layer_norm)
            for _ in range(num_critics)
        )

    def velocity(self, observations: Tensor, actions: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Computes u_k(s, a, x_k, t).

        Args:
            observations: (B, n_s).
            actions: (B, n_a).
            x: One value per member, (B, E).
            t: (B, 1).

        Returns:
            (B, E).
        """
        time = t.cos() if self.time_embedding == "cosine" else t
        embedded = self.embed(x)
        inputs = (torch.cat([observations, actions, embedded[:, k], time], dim=-1) for k in range(self.num_critics))
        velocities = [member(row) for member, row in zip(self.members, inputs, strict=True)]
        return at_least_float32(torch.cat(velocities, dim=-1))

    def forward(self, observations: Tensor, actions: Tensor, x0: Tensor) -> Tensor:
        """Computes the members' returns by Euler steps from noise.

        Args:
            observations: (B, n_s).
            actions: (B, n_a).
            x0: Noise, the same for all members, (B, 1).

        Returns:
            (B, E).
        """
        x = x0.expand(-1, self.num_critics)
        for step in range(self.flow_steps):
            t = torch.full_like(x0, step / self.flow_steps)
            x = x + self.velocity(observations, actions, x, t) / self.flow_steps
        return x

    def embed(self, x: Tensor) -> Tensor:
        """Embeds x for the members, (B, E) -> (B, E, num_bins - 1) or (B, E, 1)."""
        if self.return_embedding == "scalar":
            return ((x - self.low) / (self.high - self.low)).unsqueeze(-1)
        return gaussian_bins(x, self.edges, self.sigma)
