"""Entropy control of a causal transformer: one temperature per layer, as TQL's authors add it to Q-Transformer."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class ControlLosses(NamedTuple):
    """Losses that entropy control adds to a critic's loss.

    Attributes:
        entropy_loss: Mean over layers of -sg(clip alpha) * entropy, a scalar.
        temperature_loss: Mean over layers of alpha * (sg(entropy) - target), a scalar.
        entropy: Mean entropy of each layer, divided by its maximum if ``normalize`` is set, (L,).
    """

    entropy_loss: Tensor
    temperature_loss: Tensor
    entropy: Tensor


class LayerTemperature(nn.Module):
    """One learned temperature per layer that holds the mean entropy of its causal attention near a target.

    Args:
        num_layers: L (taken from the critic).
        targets: Target entropy of each layer; null for 0.75 in every layer.
        normalize: Whether to divide the entropy of each query by its maximum, ln of the number of tokens it attends to.
        initial: Initial temperature.
        minimum: Lower bound of the temperature in the entropy loss.
        maximum: Upper bound of the temperature in the entropy loss.

    Raises:
        ValueError: The number of targets is wrong, ``initial`` is not a finite number above 0, or ``minimum`` is not
            below ``maximum``.
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
        """Returns the temperatures, (L,), not clipped."""
        return self.raw.exp()

    def losses(self, entropy: Tensor) -> ControlLosses:
        """Computes the losses from the entropies of all queries in nats, (L, B, h, n)."""
        if self.normalize:
            seen = torch.arange(1, entropy.shape[-1] + 1, dtype=entropy.dtype, device=entropy.device)
            entropy = entropy / seen.log().where(seen > 1.0, 1.0)  # the first query attends to one token: 0 / 0
        mean = entropy.mean(dim=(1, 2, 3))
        temperature = self()
        weight = temperature.detach().clamp(self.minimum, self.maximum)
        return ControlLosses(
            entropy_loss=-(weight * mean).mean(),
            temperature_loss=(temperature * (mean.detach() - self.targets)).mean(),
            entropy=mean.detach(),
        )
