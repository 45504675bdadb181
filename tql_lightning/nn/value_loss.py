"""Losses that train a critic's values: squared error, or classification over bins (HL-Gauss)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

PADDING_BINS = 3  # beyond each end of the range of returns: 4 standard deviations at the default sigma of 0.75 bins


class Bootstrap(NamedTuple):
    """Parts of a TD target, for value losses that need more than its mean.

    Attributes:
        rewards: r, (B,).
        discounts: gamma times the mask, (B,).
        values: Values of the target critic at (s', a'), (B, E).
        logits: Logits of the target critic's bins at (s', a'), (B, E, M); None for a critic without bins.
        aggregation: Aggregation over the heads of the target critic.
    """

    rewards: Tensor
    discounts: Tensor
    values: Tensor
    logits: Tensor | None
    aggregation: Literal["mean", "min"]


class ValueLoss(nn.Module, ABC):
    """Computes the TD loss from a critic's output and TD targets.

    Attributes:
        support: Centres of the bins for which the critic outputs logits; None for a critic that outputs values.
    """

    support: list[float] | None = None

    @abstractmethod
    def forward(
        self, values: Tensor, logits: Tensor | None, target: Tensor, row_weights: Tensor | None = None
    ) -> Tensor:
        """Computes the TD loss.

        Args:
            values: Q_k(s, a), (B, E).
            logits: Logits of the bins, (B, E, M); None for a critic without bins.
            target: TD target y, (B,).
            row_weights: Weight of each row, (B,); None for 1. The divisor of the mean stays the number of rows.

        Returns:
            A scalar.
        """

    def bootstrapped(
        self,
        values: Tensor,
        logits: Tensor | None,
        target: Tensor,
        bootstrap: Bootstrap,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Computes the TD loss for a target made by a target critic; by default with `forward`.

        Args:
            values: Q_k(s, a), (B, E).
            logits: Logits of the bins, (B, E, M); None for a critic without bins.
            target: TD target y, (B,).
            bootstrap: Parts of y.
            row_weights: See `forward`.

        Returns:
            A scalar.
        """
        loss: Tensor = self(values, logits, target, *([] if row_weights is None else [row_weights]))
        return loss


class SquaredError(ValueLoss):
    """Mean over batch and heads of (Q_k(s, a) - y)^2, TQL's own (section 4 of docs/algorithm.md).

    Args:
        return_range: Unused; every value loss takes it.

    Examples:
        >>> loss = SquaredError(return_range=None)
        >>> loss(torch.zeros(5, 2), None, torch.ones(5))
        tensor(1.)
    """

    def __init__(self, return_range: tuple[float, float] | None) -> None:
        del return_range
        super().__init__()

    def forward(
        self, values: Tensor, logits: Tensor | None, target: Tensor, row_weights: Tensor | None = None
    ) -> Tensor:
        """See `ValueLoss.forward`."""
        return td_loss(values, target, row_weights)


class HLGauss(ValueLoss):
    """Cross-entropy between the critic's bins and a Gaussian around y (HL-Gauss, arXiv 2403.03950).

    A value is the mean over the centres of the bins, an expected return. Three bins beyond each end of the range keep
    that mean correct for targets at the ends. Targets outside the range are clipped to it.

    Args:
        return_range: Smallest and largest discounted return (computed from the dataset's rewards by `TQL`).
        num_bins: M, padding included.
        sigma: Standard deviation of the Gaussian, in bins.
        low: Smallest return; null for that of the data.
        high: Largest return; null for that of the data.

    Raises:
        ValueError: The range is unknown or empty, or an argument is out of its range.

    Examples:
        >>> loss = HLGauss(return_range=(-10.0, 0.0), num_bins=11)
        >>> len(loss.support)
        11
    """

    edges: Tensor

    def __init__(
        self,
        return_range: tuple[float, float] | None,
        num_bins: int = 101,
        sigma: float = 0.75,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        super().__init__()
        if num_bins < 2 * PADDING_BINS + 2:
            raise ValueError(f"HLGauss.num_bins: expected at least {2 * PADDING_BINS + 2}, found {num_bins}")
        if not 0.0 < sigma < math.inf:
            raise ValueError(f"HLGauss.sigma: expected a finite number above 0, found {sigma}")
        self.low, self.high = known_range("HLGauss", return_range, low, high)
        width = (self.high - self.low) / (num_bins - 2 * PADDING_BINS)
        self.sigma = sigma * width
        self.support = [self.low + width * (index + 0.5 - PADDING_BINS) for index in range(num_bins)]
        edges = [self.low + width * (index - PADDING_BINS) for index in range(num_bins + 1)]
        self.register_buffer("edges", torch.tensor(edges), persistent=False)

    def forward(
        self, values: Tensor, logits: Tensor | None, target: Tensor, row_weights: Tensor | None = None
    ) -> Tensor:
        """See `ValueLoss.forward`."""
        if logits is None:
            raise ValueError("HLGauss: expected a critic that gives logits of the bins, found only values")
        return hl_gauss_loss(logits, target.clamp(self.low, self.high), self.edges, self.sigma, row_weights)


def known_range(
    name: str, return_range: tuple[float, float] | None, low: float | None, high: float | None
) -> tuple[float, float]:
    """Returns the range of returns that bins span: as given, or else that of the data.

    Args:
        name: Name of the value loss, for messages.
        return_range: Smallest and largest discounted return of the data, None if unknown.
        low: Smallest return; None for that of the data.
        high: Largest return; None for that of the data.

    Raises:
        ValueError: The range is unknown, empty or infinite.
    """
    if (low is None or high is None) and return_range is None:
        raise ValueError(
            f"{name}: expected the range of returns, found none: the rewards are unknown, or the discount is 1 and "
            "their sum has no bound; set value_loss.low and value_loss.high, or problem.reward_range of the model "
            "(the command line takes it from the dataset) and a discount below 1"
        )
    low = return_range[0] if low is None else low  # type: ignore[index]
    high = return_range[1] if high is None else high  # type: ignore[index]
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{name}: expected finite low below high, found {low} and {high}")
    return low, high


def td_loss(values: Tensor, target: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """Mean over batch and heads of w (Q_k(s, a) - y)^2, section 4.

    Args:
        values: Q_k(s, a), (B, E).
        target: y, (B,).
        row_weights: w, (B,); None for 1. The divisor of the mean stays the number of rows.
    """
    return weighted_mean((values - target.unsqueeze(-1)).square(), row_weights)


def gaussian_bins(target: Tensor, edges: Tensor, sigma: float) -> Tensor:
    """Computes each bin's probability under N(y, sigma^2), truncated at the outer edges (HL-Gauss, arXiv 2403.03950).

    Args:
        target: y, (...), within the edges.
        edges: Edges of the M bins, ascending, (M + 1,).
        sigma: Standard deviation of the Gaussian.

    Returns:
        Probabilities, (..., M); rows sum to 1.
    """
    cumulative = torch.erf((edges - target.unsqueeze(-1)) / (math.sqrt(2.0) * sigma))
    return cumulative.diff(dim=-1) / (cumulative[..., -1:] - cumulative[..., :1])


def hl_gauss_loss(
    logits: Tensor, target: Tensor, edges: Tensor, sigma: float, row_weights: Tensor | None = None
) -> Tensor:
    """Mean over batch and heads of the bins' cross-entropy to the Gaussian around y (HL-Gauss, arXiv 2403.03950).

    Args:
        logits: Logits of the bins, (B, E, M).
        target: y, (B,), within the edges.
        edges: Edges of the bins, (M + 1,).
        sigma: Standard deviation of the Gaussian.
        row_weights: See `td_loss`.
    """
    probabilities = gaussian_bins(target, edges, sigma).unsqueeze(1)
    return weighted_mean(-(probabilities * logits.log_softmax(dim=-1)).sum(dim=-1), row_weights)


def weighted_mean(losses: Tensor, row_weights: Tensor | None) -> Tensor:
    """Mean over rows and heads of weighted losses: losses (B, E), row_weights (B,) or None for 1."""
    return losses.mean() if row_weights is None else (losses * row_weights.unsqueeze(-1)).mean()
