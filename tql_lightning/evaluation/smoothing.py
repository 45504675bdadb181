"""Center smoothing (arXiv 2102.09701): how far an output can move when its input is moved a little, with a certificate.

A function f: R^n -> R^k is replaced by its smoothed form: the centre of a small ball that holds half of f(x + sigma g),
where g is standard normal. With probability 1 - alpha_1 - alpha_2 the centres at x and at any x' with
|x - x'| <= epsilon are no further apart than the bound that `certify` gives. Distances are Euclidean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]  # (N, n) -> (N, k)
Draw = Callable[[int], Tensor]  # how many -> so many standard normal vectors, (N, n), the next ones at every call

ROWS_AT_ONCE = 10_000  # inputs that a function is called with
DISTANCES_AT_ONCE = 10_000_000
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Smoothing:
    """Settings of center smoothing; the defaults are the paper's, but for the numbers of samples.

    Args:
        sigma: standard deviation of the noise, in the units of the input.
        samples: samples that find the centre, and again samples that test it; the paper has 10,000, or 5,000 for its
            largest model.
        certificate_samples: samples that the bound is a quantile of; the paper has 1,000,000, or 10,000.
        alpha_1: probability that the centre's ball is judged wrongly.
        alpha_2: probability that the quantile is too small.
        delta: Largest distance of the share of outputs in the ball from a half.
        coefficient: bound over quantile: 3 for a centre chosen among samples under a metric.
        candidates: fresh samples that the centre is chosen from (the paper's form for outputs of many dimensions, with
            30); None to choose it from all.
        interpolate: interpolate the quantile between samples as the authors' code does, which is a little too small;
            False for the next larger sample, which keeps the certificate exact.

    Raises:
        ValueError: a setting is out of its range.
    """

    sigma: float
    samples: int = 5_000
    certificate_samples: int = 10_000
    alpha_1: float = 0.005
    alpha_2: float = 0.005
    delta: float = 0.05
    coefficient: float = 3.0
    candidates: int | None = None
    interpolate: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma < math.inf:
            raise ValueError(f"sigma: expected a finite number above 0, found {self.sigma}")
        if not 0.0 < self.delta < 0.5:
            raise ValueError(f"delta: expected between 0 and 0.5, found {self.delta}")
        for name in ("alpha_1", "alpha_2"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name}: expected between 0 and 1, found {getattr(self, name)}")
        for name in ("samples", "certificate_samples", "candidates"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")

    @property
    def delta_1(self) -> float:
        """Half-width of the confidence interval of the share of outputs in the ball."""
        return math.sqrt(math.log(2.0 / self.alpha_1) / (2.0 * self.samples))

    def quantile(self, epsilon: float) -> float:
        """Which quantile bounds the move of an input by ``epsilon``; above 1 where there is no certificate."""
        shifted = _NORMAL.inv_cdf(0.5 + self.delta) + epsilon / self.sigma
        return _NORMAL.cdf(shifted) + math.sqrt(math.log(1.0 / self.alpha_2) / (2.0 * self.certificate_samples))

    def samples_needed(self) -> int:
        """Fewest ``samples`` with which any centre can be certified."""
        return math.ceil(math.log(2.0 / self.alpha_1) / (2.0 * self.delta**2))

    def certificate_samples_needed(self, epsilon: float) -> float:
        """Fewest ``certificate_samples`` that can certify ``epsilon``; infinite where rounding leaves none."""
        left = _NORMAL.cdf(-_NORMAL.inv_cdf(0.5 + self.delta) - epsilon / self.sigma)
        return math.ceil(math.log(1.0 / self.alpha_2) / (2.0 * left**2)) if left > 0.0 else math.inf


class Smoothed(NamedTuple):
    """Where a function's outputs gather around an input.

    Attributes:
        center: one of the sampled outputs, (k,).
        center_index: Index of the centre among the candidates.
        radius: half of the outputs it was chosen by are within it.
        inside: Number of ``samples`` fresh outputs within it.
        delta_2: Largest distance of the share of those inside below a half.
        abstains: Whether the centre is not certified: ``delta_1`` or ``delta_2`` is above ``delta``.
    """

    center: Tensor
    center_index: int
    radius: float
    inside: int
    delta_2: float
    abstains: bool


class Certificate(NamedTuple):
    """What is certain about the smoothed function around an input.

    Attributes:
        smoothed: the centre and how it was found.
        bounds: for each epsilon, how far the centre can move when the input is moved by at most epsilon; None where
            nothing is certified.
        smoothing_error: distance of the centre to the function's own output; None where the centre is not certified.
    """

    smoothed: Smoothed
    bounds: tuple[float | None, ...]
    smoothing_error: float | None


def smooth(function: Function, x: Tensor, smoothing: Smoothing, draw: Draw) -> Smoothed:
    """The smoothed function at an input, tested on fresh samples.

    Args:
        function: f.
        x: the input, (n,).
        smoothing: settings.
        draw: the noise, drawn in the order: candidates (where there are any), samples, fresh samples.
    """
    outputs = None if smoothing.candidates is None else _sample(function, x, smoothing, draw, smoothing.candidates)
    others = _sample(function, x, smoothing, draw, smoothing.samples)
    candidates = others if outputs is None else outputs
    index, radius = median_center(candidates, others)
    center = candidates[index]
    fresh = _sample(function, x, smoothing, draw, smoothing.samples)
    inside = int((_distances(fresh, center[None]) <= radius).sum())
    delta_2 = 0.5 - (inside / smoothing.samples - smoothing.delta_1)
    return Smoothed(center, index, radius, inside, delta_2, max(smoothing.delta_1, delta_2) > smoothing.delta)


def certify(function: Function, x: Tensor, smoothing: Smoothing, epsilons: Sequence[float], draw: Draw) -> Certificate:
    """Bounds on how far the smoothed function can move, for several sizes of the move of the input.

    One centre and one set of samples serve all epsilons: the bound on the quantiles holds for all of them at once.

    Args:
        function: f.
        x: the input, (n,).
        smoothing: settings.
        epsilons: Euclidean lengths of the move, in the units of the input.
        draw: the noise, see `smooth`; the certificate's samples come last.
    """
    smoothed = smooth(function, x, smoothing, draw)
    if smoothed.abstains:
        return Certificate(smoothed, (None,) * len(epsilons), None)
    outputs = _sample(function, x, smoothing, draw, smoothing.certificate_samples)
    distances = _distances(outputs, smoothed.center[None])[:, 0].sort().values
    bounds = []
    for epsilon in epsilons:
        quantile = smoothing.quantile(epsilon)
        bounds.append(
            None if quantile > 1.0 else smoothing.coefficient * _quantile(distances, quantile, smoothing.interpolate)
        )
    error = float((smoothed.center - function(x[None])[0]).norm())
    return Certificate(smoothed, tuple(bounds), error)


def median_center(candidates: Tensor, outputs: Tensor) -> tuple[int, float]:
    """Which candidate has the smallest median distance to the outputs, the first on ties, and that distance.

    The median of an even number is the mean of the two in the middle.

    Args:
        candidates: (C, k).
        outputs: (N, k); they may be the candidates themselves, whose distance of 0 then counts.
    """
    number = len(outputs)
    block = max(1, DISTANCES_AT_ONCE // number)
    medians = []
    for some in torch.split(candidates, block):
        ordered = [_distances(some, outputs).kthvalue(k, dim=1).values for k in {(number + 1) // 2, number // 2 + 1}]
        medians.append(torch.stack(ordered).mean(dim=0))
    joined = torch.cat(medians)
    index = int((joined == joined.min()).nonzero()[0])
    return index, float(joined[index])


def _sample(function: Function, x: Tensor, smoothing: Smoothing, draw: Draw, number: int) -> Tensor:
    """Outputs (number, k) at noisy inputs."""
    left = [min(ROWS_AT_ONCE, number - start) for start in range(0, number, ROWS_AT_ONCE)]
    return torch.cat([function(x + smoothing.sigma * draw(rows)) for rows in left])


def _distances(left: Tensor, right: Tensor) -> Tensor:
    """(N, k) and (M, k) -> (N, M); from differences, as a product of matrices would lose half the digits."""
    return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")


def _quantile(ordered: Tensor, quantile: float, interpolate: bool) -> float:
    """A quantile of ascending numbers: the smallest with at least that share at or below it, or interpolated."""
    if not interpolate:
        return float(ordered[min(len(ordered), math.ceil(quantile * len(ordered))) - 1])
    position = quantile * (len(ordered) - 1)
    below = min(int(position), len(ordered) - 2)
    return float(torch.lerp(ordered[below], ordered[below + 1], position - below))
