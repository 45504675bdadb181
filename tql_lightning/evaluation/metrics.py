"""Metrics that torchmetrics does not have."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

RESAMPLES = 10_000


class MeanWithError(Metric):
    """Mean of independent values and the standard error of that mean, reduced over processes.

    The error is s / sqrt(n) with the sample standard deviation s (n - 1 in its divisor); 0 for a single
    value. Sums are kept in float64.

    Args:
        sync_on_compute: reduce over processes; not for values that every process already has all of.
    """

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
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


def bootstrap_interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of independent values (Efron 1979), the same at every call.

    Args:
        values: (n,), at least one.
        level: share of the resampled means within the interval.

    Returns:
        Its ends: quantiles of the means of `RESAMPLES` samples with replacement. Both are the mean where all values
        are equal, though the true interval is wider.
    """
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def rate_interval(outcomes: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Interval of a success rate: `bootstrap_interval`, but where all outcomes are alike, which it learns nothing from.

    There it is the exact one (Clopper & Pearson 1934): 0 successes of n leave rates up to 1 - ((1 - level) / 2)^(1 / n)
    possible, 7 % of 50.

    Args:
        outcomes: (n,), 0 or 1 each, at least one.
        level: share of such intervals that hold the true rate.

    Returns:
        Its ends.
    """
    possible = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / len(outcomes))
    if not outcomes.any():
        return 0.0, possible
    return (1.0 - possible, 1.0) if (outcomes == 1.0).all() else bootstrap_interval(outcomes, level)
