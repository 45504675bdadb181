"""Entropy control of a causal transformer: one temperature per layer, as TQL's authors add it to Q-Transformer."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class ControlLosses(NamedTuple):
    """What entropy control adds to a critic's loss.

    Attributes:
        entropy_loss: Mean over layers of -sg(clip alpha) * entropy, a scalar.
        temperature_loss: Mean over layers of alpha * (sg(entropy) - target), a scalar.
        entropy: Mean entropy of each layer, normalised if that is switched on, (L,).
    """

    entropy_loss: Tensor
    temperature_loss: Tensor
    entropy: Tensor


class LayerTemperature(nn.Module):
    """One learned temperature per layer that holds the mean entropy of its causal attention near a target.

    Args:
        num_layers: L (taken from the critic).
        targets: One per layer; null for 0.75 in every layer.
        normalize: Whether the entropy of each query is divided by the largest it can have, ln of the tokens it sees.
        initial: Temperature at the start.
        minimum: Lower clip of the temperature where it weighs the entropy.
        maximum: Upper clip of the temperature where it weighs the entropy.

    Raises:
        ValueError: Targets of the wrong number, an initial temperature of 0 or less, or ``minimum`` not below
            ``maximum``.
    """

    targets: Tensor

    def __init__(
        self,
        num_layers: int,
        targets: list[float] | None = None,
        normalize: bool = True,
        initial: float = 1.0,
        minimum: float = -100.0,
        maximum: float = 100.0,
    ) -> None:
        super().__init__()
        targets = [0.75] * num_layers if targets is None else targets
        if len(targets) != num_layers:
            raise ValueError(f"targets: expected {num_layers}, one per layer, found {targets}")
        if not 0.0 < initial < math.inf:
            raise ValueError(f"initial: expected a finite temperature above 0, found {initial}")
        if not minimum < maximum:
            raise ValueError(f"minimum: expected less than maximum={maximum}, found {minimum}")
        self.register_buffer("targets", torch.tensor(targets, dtype=torch.float32), persistent=False)
        self.raw = nn.Parameter(torch.full((num_layers,), math.log(initial)))
        self.normalize, self.minimum, self.maximum = normalize, minimum, maximum

    def forward(self) -> Tensor:
        """The temperatures, (L,), not clipped."""
        return self.raw.exp()

    def losses(self, entropy: Tensor) -> ControlLosses:
        """The losses for entropies of all queries in nats, (L, B, h, n)."""
        if self.normalize:
            seen = torch.arange(1, entropy.shape[-1] + 1, dtype=entropy.dtype, device=entropy.device)
            entropy = entropy / seen.log().where(seen > 1.0, 1.0)  # the first query sees one token: 0 of 0
        mean = entropy.mean(dim=(1, 2, 3))
        temperature = self()
        weight = temperature.detach().clamp(self.minimum, self.maximum)
        return ControlLosses(
            entropy_loss=-(weight * mean).mean(),
            temperature_loss=(temperature * (mean.detach() - self.targets)).mean(),
            entropy=mean.detach(),
        )
