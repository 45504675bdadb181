"""Certificates of center smoothing at many states, gathered for a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tql_lightning.evaluation.smoothing import Certificate, Function, Smoothing, certify


@dataclass(frozen=True)
class CertificateRow:
    """What is certified for one sigma and one epsilon.

    Attributes:
        sigma: standard deviation of the noise.
        epsilon: length of the move of an observation.
        samples_needed: fewest certificate samples with which this epsilon can be certified, where that is more than
            there were; None where there were enough.
        abstained: states whose centre is not certified; they are in no figure.
        bounds: at the other states, how far the smoothed output can move; empty where ``samples_needed`` is set.
        smoothing_errors: at the states that did not abstain, distance of the smoothed output to the function's own.
    """

    sigma: float
    epsilon: float
    samples_needed: float | None
    abstained: int
    bounds: list[float]
    smoothing_errors: list[float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with quartiles; an infinite number of samples is None beside ``impossible``."""
        needed = self.samples_needed
        record = asdict(self) | {"impossible": needed == math.inf}
        record["samples_needed"] = None if needed is None or needed == math.inf else int(needed)
        if self.bounds:
            names = ("bound_lower_quartile", "bound_median", "bound_upper_quartile")
            record |= dict(zip(names, quartiles(self.bounds), strict=True))
        if self.smoothing_errors:
            record["smoothing_error_median"] = quartiles(self.smoothing_errors)[1]
        return record


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    lower, median, upper = np.quantile(np.asarray(values), (0.25, 0.5, 0.75)).tolist()
    return lower, median, upper


@torch.inference_mode()
def certify_states(
    functions: Sequence[Function], states: Tensor, smoothings: Sequence[Smoothing], epsilons: Sequence[float], seed: int
) -> list[CertificateRow]:
    """Certifies functions at every state, for every sigma and epsilon.

    A state's noise is a function of the seed and the state's number: the same for every sigma and every policy.

    Args:
        functions: Function of the observation to certify, one for each state.
        states: Observations (K, n_s).
        smoothings: Settings, one for each sigma.
        epsilons: Lengths of the move of an observation.
        seed: Seed of the noise.

    Raises:
        ValueError: There are too few samples to certify anything; the message says how many are needed.
    """
    require_enough_samples(smoothings, epsilons)
    rows = []
    for smoothing in smoothings:
        bar = tqdm(states, desc=f"certifying at sigma {smoothing.sigma:g}", delay=5, leave=False, disable=None)
        certificates = []
        for number, (function, state) in enumerate(zip(functions, bar, strict=True)):
            generator = torch.Generator().manual_seed(_seed_of(seed, number))
            certificates.append(
                certify(
                    function,
                    state,
                    smoothing,
                    epsilons,
                    lambda count, drawn=generator: torch.randn(count, states.shape[1], generator=drawn),  # type: ignore[misc]
                )
            )
        rows += [_row(smoothing, epsilon, place, certificates) for place, epsilon in enumerate(epsilons)]
    return rows


def require_enough_samples(smoothings: Sequence[Smoothing], epsilons: Sequence[float]) -> None:
    """Refuses settings with which every state would abstain, or no epsilon could be certified.

    Raises:
        ValueError: the message tells how many samples are needed.
    """
    for epsilon in epsilons:
        if not 0.0 <= epsilon < math.inf:
            raise ValueError(f"epsilon: expected a finite number of at least 0, found {epsilon}")
    for smoothing in smoothings:
        if smoothing.samples < smoothing.samples_needed():
            raise ValueError(
                f"samples: expected at least {smoothing.samples_needed():,} (in practice 4,000), found "
                f"{smoothing.samples:,}; with fewer no centre is certified"
            )
    needed = [(_needed(each, epsilon), each.sigma, epsilon) for each in smoothings for epsilon in epsilons]
    refused = [(number, sigma, epsilon) for number, sigma, epsilon in needed if number is not None]
    if needed and len(refused) == len(needed):
        number, sigma, epsilon = min(refused)
        remedy = "no number does" if number == math.inf else f"it takes at least {int(number):,}"
        raise ValueError(
            f"certificate_samples: {smoothings[0].certificate_samples:,} certify no epsilon; for epsilon {epsilon:g} "
            f"at sigma {sigma:g} {remedy}; or choose a larger sigma"
        )


def _needed(smoothing: Smoothing, epsilon: float) -> float | None:
    enough = smoothing.quantile(epsilon) <= 1.0
    return None if enough else smoothing.certificate_samples_needed(epsilon)


def _row(smoothing: Smoothing, epsilon: float, place: int, certificates: Sequence[Certificate]) -> CertificateRow:
    kept = [each for each in certificates if not each.smoothed.abstains]
    bounds = [bound for each in kept if (bound := each.bounds[place]) is not None]
    errors = [each.smoothing_error for each in kept if each.smoothing_error is not None]
    abstained = len(certificates) - len(kept)
    return CertificateRow(smoothing.sigma, epsilon, _needed(smoothing, epsilon), abstained, bounds, errors)


def _seed_of(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
