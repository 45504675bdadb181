"""Interquartile mean and probability of improvement, worked by hand from arXiv 2108.13264, and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tql_lightning.report.statistics import interquartile_mean, probability_of_improvement


def test_the_interquartile_mean_is_that_of_the_middle_half_of_all_runs_of_all_tasks() -> None:
    # Sorted: -20 1 | 2 3 4 5 | 6 10; a quarter of the 8 is left out at each end.
    assert interquartile_mean([[1, 2, 3, 10], [4, 5, 6, -20]]).value == pytest.approx((2 + 3 + 4 + 5) / 4)
    # floor(5 / 4) = 1 is left out at each end.
    assert interquartile_mean([[9, 1, 2, 3, -100]]).value == pytest.approx(2.0)
    assert interquartile_mean([[1.0, 2.0, 6.0]]).value == pytest.approx(3.0)


def test_the_probability_of_improvement_counts_pairs_of_a_task_and_averages_tasks() -> None:
    # Task 1: of (1, 2) (1, 3) (3, 2) (3, 3) one is won and one tied: 1.5 / 4. Task 2: 1. Their mean: 0.6875.
    found = probability_of_improvement([[1, 3], [5]], [[2, 3], [4]])
    assert found.value == pytest.approx((1.5 / 4 + 1.0) / 2)
    x, y = np.random.default_rng(0).normal(size=(2, 7))
    u = stats.mannwhitneyu(x, y).statistic / 49
    assert probability_of_improvement([x], [y]).value == pytest.approx(u)
    assert probability_of_improvement([y], [x]).value == pytest.approx(1 - u)


def test_the_bootstrap_draws_every_task_on_its_own() -> None:
    # Each task's runs agree, so no draw can change the mean; drawn over all four, 0 and 1 would occur.
    assert interquartile_mean([[0.0, 0.0], [1.0, 1.0]]) == pytest.approx((0.5, 0.5, 0.5))
    # Of two runs 0 and 1 a draw's mean is 0 or 1 with probability 1/4 each.
    assert interquartile_mean([[0.0, 1.0]]) == pytest.approx((0.5, 0.0, 1.0))


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    tasks = list(np.random.default_rng(1).normal(size=(3, 10)))
    found = interquartile_mean(tasks, resamples=20_000)

    def statistic(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return stats.trim_mean(np.concatenate(drawn, axis=axis), 0.25, axis=axis)

    expected = stats.bootstrap(
        tasks, statistic, n_resamples=20_000, method="percentile", vectorized=True, rng=np.random.default_rng(2)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.02)


def test_the_interval_does_not_change_from_call_to_call() -> None:
    scores = [[0.1, 0.5, 0.9], [0.2, 0.3]]
    assert interquartile_mean(scores) == interquartile_mean(scores)


@pytest.mark.parametrize("scores", [[], [[]], [[1.0], []]])
def test_a_task_without_runs_is_refused(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="one run of every task"):
        interquartile_mean(scores)


def test_methods_of_different_tasks_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
