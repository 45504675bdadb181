"""Means, errors and intervals of episodes, against formulas written out here."""

from __future__ import annotations

import numpy as np
import pytest

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
def test_a_rate_of_none_or_all_has_the_exact_interval(episodes: int) -> None:
    possible = 1.0 - 0.025 ** (1.0 / episodes)
    assert rate_interval(np.zeros(episodes)) == pytest.approx((0.0, possible))
    assert rate_interval(np.ones(episodes)) == pytest.approx((1.0 - possible, 1.0))


def test_any_other_rate_has_the_bootstraps() -> None:
    outcomes = np.repeat([1.0, 0.0], [10, 40])
    assert rate_interval(outcomes) == bootstrap_interval(outcomes)
