"""Mean, standard error and 95 % intervals of independent episodes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

RESAMPLES = 10_000


def mean_with_error(values: Floats) -> tuple[float, float]:
    """Mean of (n,) values and its standard error s / sqrt(n), with the sample standard deviation s.

    The error is 0 for a single value.
    """
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def bootstrap_interval(values: Floats) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), from the same resamples at every call.

    It is the mean alone where all (n,) values are equal, although the true interval is wider.
    """
    if len(values) == 1:  # SciPy needs two
        return float(values[0]), float(values[0])
    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0).confidence_interval
    return float(found.low), float(found.high)


def rate_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Exact interval of a success rate (Clopper & Pearson 1934).

    The number of successes is binomial, so that nothing needs resampling. The bootstrap would learn nothing from
    outcomes that are all equal: 0 successes of 50 leave rates up to 7 % possible.
    """
    exact = stats.binomtest(successes, episodes).proportion_ci()
    return float(exact.low), float(exact.high)
