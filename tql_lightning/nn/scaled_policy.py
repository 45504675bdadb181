"""A policy and its extraction as one network in the environment's units, for export."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tql_lightning.nn.critic import Critic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.policy_extraction import EXTRACTIONS


class ScaledPolicy(nn.Module):
    """A policy and its extraction as one network that acts in the environment's units.

    Args:
        policy: Flow policy.
        critic: Critic that chooses among actions; None where the extraction uses none.
        extraction: Name of the extraction, one of `EXTRACTIONS`.
        action_low: Lower bounds of the environment's actions, (n_a,).
        action_high: Upper bounds of the environment's actions, (n_a,).

    Raises:
        ValueError: the extraction needs a critic, and there is none.
    """

    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        policy: FlowPolicy,
        critic: Critic | None,
        extraction: str,
        action_low: Sequence[float],
        action_high: Sequence[float],
    ) -> None:
        super().__init__()
        self.extraction = EXTRACTIONS[extraction]
        if self.extraction.uses_critic and critic is None:
            raise ValueError(f'extraction "{extraction}": expected a critic, found none')
        self.policy = policy
        self.critic = critic
        self.register_buffer("action_low", torch.tensor(action_low, dtype=torch.float32))
        self.register_buffer("action_high", torch.tensor(action_high, dtype=torch.float32))

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        """(B, n_s) and (B, *noise_shape) -> (B, n_a) between ``action_low`` and ``action_high``."""
        actions = self.extraction.act(self.policy, self.critic, observations, noise)
        return self.action_low + (actions + 1.0) * ((self.action_high - self.action_low) / 2.0)

    def with_zero_noise(self) -> ScaledPolicy:
        """The network that takes zeros (B, n_a) for noise, acts as this one then does, and holds no critic."""
        bounds = self.action_low.tolist(), self.action_high.tolist()
        return ScaledPolicy(self.policy, None, self.extraction.with_zero_noise, *bounds)
