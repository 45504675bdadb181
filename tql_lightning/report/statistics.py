"""Statistics of few runs (Agarwal et al. 2021, arXiv 2108.13264).

Scores are one number per run, grouped by task: ``[[task 1's runs], [task 2's runs], ...]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Scores = Sequence[Sequence[float] | Floats]

TRIMMED = 0.25  # share of the scores left out at each end
RESAMPLES = 2_000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: Scores, resamples: int = RESAMPLES) -> Estimate:
    """Mean of the middle half of all scores, with its bootstrap interval, stratified by task.

    The floor(n / 4) smallest and largest of n scores are left out. With fewer than four it is the mean.

    Args:
        scores: Scores by task, at least one run each.
        resamples: Number of resamples of each task's runs. Every call draws the same ones.

    Raises:
        ValueError: A task has no run.
    """
    return _with_interval(_interquartile_mean, [scores], resamples)


def mean_over_tasks(scores: Scores) -> Estimate:
    """Mean over tasks of the means over runs, with its bootstrap interval over runs, stratified by task.

    Args:
        scores: Scores by task, at least one run each.

    Raises:
        ValueError: A task has no run.
    """
    return _with_interval(_mean_over_tasks, [scores])


def probability_of_improvement(scores: Scores, others: Scores) -> Estimate:
    """Probability that a run of one method beats a run of another on the same task, averaged over tasks.

    On each task it is the share of pairs (x, y) with x > y, with one half per tie: the Mann-Whitney statistic.

    Args:
        scores: Scores of the first method by task.
        others: Scores of the second method by task.

    Raises:
        ValueError: A task has no run, or the methods have different numbers of tasks.
    """
    if len(scores) != len(others):
        raise ValueError(f"expected the same tasks of both methods, found {len(scores)} and {len(others)}")
    return _with_interval(_probability_of_improvement, [scores, others])


def _interquartile_mean(tasks: list[Floats]) -> Floats:
    """Resampled scores of each task, (R, n) -> (R,)."""
    mean: Floats = stats.trim_mean(np.concatenate(tasks, axis=1), TRIMMED, axis=1)
    return mean


def _mean_over_tasks(tasks: list[Floats]) -> Floats:
    """Resampled scores of each task, (R, n) -> (R,)."""
    return np.asarray(np.mean([task.mean(axis=1) for task in tasks], axis=0), dtype=np.float64)


def _probability_of_improvement(tasks: list[Floats], others: list[Floats]) -> Floats:
    """Resampled scores of each task of both methods, (R, n) -> (R,)."""
    shares = []
    for own, other in zip(tasks, others, strict=True):
        x, y = own[:, :, None], other[:, None, :]
        shares.append(((x > y) + 0.5 * (x == y)).mean(axis=(1, 2)))
    return np.asarray(np.mean(shares, axis=0), dtype=np.float64)


def _with_interval(statistic: Callable[..., Floats], methods: Sequence[Scores], resamples: int = RESAMPLES) -> Estimate:
    arrays = [[np.asarray(task, dtype=np.float64)[None] for task in scores] for scores in methods]
    if any(not tasks or any(task.shape[1] == 0 for task in tasks) for tasks in arrays):
        raise ValueError("expected at least one task and one run of every task, found none")
    rng = np.random.default_rng(0)  # not scipy.stats.bootstrap, which refuses tasks with one run
    drawn = [
        [task[0, rng.integers(task.shape[1], size=(resamples, task.shape[1]))] for task in tasks] for tasks in arrays
    ]
    low, high = np.quantile(statistic(*drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(statistic(*arrays)[0]), float(low), float(high))
