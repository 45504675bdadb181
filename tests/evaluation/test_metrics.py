"""Means, errors and intervals of episodes, against formulas written out here."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from tql_lightning.evaluation.metrics import RESAMPLES, bootstrap_interval, mean_with_error, rate_interval


def test_the_error_is_the_sample_deviation_over_the_root_of_the_number() -> None:
    values = np.array([1.0, 2.0, 6.0])  # mean 3, squared deviations 4 + 1 + 9 over n - 1 = 2: variance 7
    assert mean_with_error(values) == pytest.approx((3.0, np.sqrt(7.0 / 3.0)))


def test_a_single_value_has_no_error_and_no_interval() -> None:
    assert mean_with_error(np.array([3.0])) == (3.0, 0.0)
    assert bootstrap_interval(np.array([3.0])) == (3.0, 3.0)


def test_the_bootstrap_takes_quantiles_of_resampled_means() -> None:
    values = np.random.default_rng(1).normal(size=50)
    resampled = np.random.default_rng(0).integers(50, size=(RESAMPLES, 50))
    expected = np.quantile(values[resampled].mean(axis=1), [0.025, 0.975])
    assert bootstrap_interval(values) == pytest.approx(tuple(expected), rel=1e-12)


@pytest.mark.parametrize("episodes", [1, 50])
def test_a_rate_of_none_or_all_leaves_other_rates_possible(episodes: int) -> None:
    possible = 1.0 - 0.025 ** (1.0 / episodes)
    assert rate_interval(0, episodes) == pytest.approx((0.0, possible))
    assert rate_interval(episodes, episodes) == pytest.approx((1.0 - possible, 1.0))


@pytest.mark.parametrize("successes", [1, 10, 49])
def test_at_each_end_of_a_rates_interval_the_outcome_or_one_beyond_it_has_a_fortieth(successes: int) -> None:
    low, high = rate_interval(successes, 50)
    assert binom.sf(successes - 1, 50, low) == pytest.approx(0.025)
    assert binom.cdf(successes, 50, high) == pytest.approx(0.025)
