"""Discretised actions: equal bins in every dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MIN_SPAN = 1e-6  # bounds of an action dimension that are closer are moved apart by 1 each


class ActionBins(nn.Module):
    """Splits every dimension of an action into N equal bins between its bounds.

    Args:
        low: Smallest action of each dimension, (n_a,).
        high: Largest action of each dimension, (n_a,).
        num_bins: N, number of bins per dimension.

    Raises:
        ValueError: The bounds differ in length, are not finite or are in the wrong order, or ``num_bins`` is below 2.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float], num_bins: int) -> None:
        super().__init__()
        if num_bins < 2:
            raise ValueError(f"num_bins: expected at least 2, found {num_bins}")
        if len(low) != len(high) or not all(-math.inf < a <= b < math.inf for a, b in zip(low, high, strict=True)):
            raise ValueError(f"action_range: expected finite bounds, each low at most its high, found {low} and {high}")
        bounds = torch.tensor([list(low), list(high)], dtype=torch.float32)
        widened = bounds + torch.where(bounds[1] - bounds[0] < MIN_SPAN, torch.tensor([[-1.0], [1.0]]), 0.0)
        self.register_buffer("low", widened[0], persistent=False)
        self.register_buffer("high", widened[1], persistent=False)
        self.num_bins = num_bins

    def forward(self, actions: Tensor) -> Tensor:
        """Returns the bins of actions (..., n_a), int64 (..., n_a).

        Scales actions to [-1, 1] first, as the release does: the rounding decides the bin of an action at an edge.
        """
        scaled = (2.0 * ((actions - self.low) / (self.high - self.low)) - 1.0).clamp(-1.0, 1.0)
        return ((scaled + 1.0) / 2.0 * self.num_bins).floor().long().clamp(0, self.num_bins - 1)

    def centres(self, bins: Tensor) -> Tensor:
        """Returns the actions at the centres of bins, (..., n_a) -> (..., n_a)."""
        return self.low + (bins + 0.5) / self.num_bins * (self.high - self.low)
