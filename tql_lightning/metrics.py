"""Metrics that torchmetrics does not have."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanWithError(Metric):
    """Mean of independent values and the standard error of that mean, reduced over processes.

    The error is s / sqrt(n) with the sample standard deviation s (n - 1 in its divisor); 0 for a single
    value. Sums are kept in float64.
    """

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Adds values of any shape."""
        values = values.to(torch.float64)
        self.total += values.sum()
        self.squares += values.square().sum()
        self.count += values.numel()

    def compute(self) -> tuple[Tensor, Tensor]:
        """(mean, standard error), NaN before any value."""
        mean = self.total / self.count
        deviations = (self.squares - self.count * mean.square()).clamp(min=0.0)
        return mean, (deviations / (self.count - 1).clamp(min=1.0) / self.count).sqrt()
