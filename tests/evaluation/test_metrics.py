"""Metrics against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tql_lightning.evaluation.metrics import MeanWithError, bootstrap_interval, rate_interval


def test_mean_and_error_equal_numpys_over_several_updates() -> None:
    values = np.random.default_rng(0).normal(-124.0, 0.3, size=50)
    metric = MeanWithError()
    for part in np.split(values, [7, 20]):
        metric.update(torch.as_tensor(part))
    mean, error = metric.compute()
    assert mean.item() == pytest.approx(values.mean(), rel=1e-12)
    assert error.item() == pytest.approx(values.std(ddof=1) / np.sqrt(50), rel=1e-6)


def test_a_single_value_has_no_error() -> None:
    metric = MeanWithError()
    metric.update(torch.tensor([3.0]))
    assert [value.item() for value in metric.compute()] == [3.0, 0.0]


def test_processes_add_up() -> None:
    values = torch.arange(10.0)
    whole, left, right = MeanWithError(), MeanWithError(), MeanWithError()
    whole.update(values)
    left.update(values[:4])
    right.update(values[4:])
    for name in ("total", "squares", "count"):
        setattr(left, name, getattr(left, name) + getattr(right, name))  # as dist_reduce_fx="sum" does
    assert [value.item() for value in left.compute()] == [value.item() for value in whole.compute()]


@pytest.mark.parametrize(("successes", "episodes"), [(0, 50), (50, 50), (0, 1), (1, 1)])
def test_a_rate_of_none_or_all_has_the_exact_interval(successes: int, episodes: int) -> None:
    expected = stats.binomtest(successes, episodes).proportion_ci(method="exact")
    found = rate_interval(np.repeat([1.0, 0.0], [successes, episodes - successes]))
    assert found == pytest.approx((expected.low, expected.high))
    assert found[0] < found[1]


def test_any_other_rate_has_the_bootstraps() -> None:
    outcomes = np.repeat([1.0, 0.0], [10, 40])
    assert rate_interval(outcomes) == bootstrap_interval(outcomes)
    expected = stats.bootstrap((outcomes,), np.mean, method="percentile", rng=1).confidence_interval
    assert rate_interval(outcomes) == pytest.approx((expected.low, expected.high), abs=0.021)
