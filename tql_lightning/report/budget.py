"""The tuning-budget curve: what tuning by few evaluation episodes is worth (Jackson et al. 2025, arXiv 2504.11453).

Of all trained policies, k are drawn at random. A bandit chooses, episode by episode, which of them to evaluate, by the
upper confidence bound; the policy with the best mean so far is the one that would be deployed. Its true score, here the
mean over all its recorded episodes, is averaged over many repetitions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tql_lightning.report.statistics import LEVEL

EXPLORATION = 2.0  # alpha of the bound: mean + sqrt(alpha ln(pulls) / own pulls), scores scaled to [0, 1]
REPETITIONS = 1000
SHOWN_PULLS = (1, 2, 5, 10, 20, 50, 100, 200)


def budget_curve(
    episodes: Sequence[Sequence[float]], policies: int, pulls: int, repetitions: int = REPETITIONS
) -> NDArray[np.float64]:
    """Expected true score of the chosen policy after each evaluation episode.

    Args:
        episodes: Scores of the recorded episodes of each trained policy, at least one each.
        policies: k, how many of the policies are drawn for a repetition.
        pulls: Number of evaluation episodes.
        repetitions: Number of repetitions.

    Returns:
        (3, pulls): mean over repetitions, and the bounds of its 95 % interval.

    Raises:
        ValueError: There are fewer than k policies, or one without an episode.
    """
    if not 1 <= policies <= len(episodes) or any(len(each) == 0 for each in episodes):
        raise ValueError(
            f"expected at least {policies} policies with episodes, found {[len(each) for each in episodes]}"
        )
    rng = np.random.default_rng(0)
    lengths = np.array([len(each) for each in episodes])
    table = np.full((len(episodes), lengths.max()), np.nan)
    for row, each in zip(table, episodes, strict=True):
        row[: len(each)] = each
    truth = np.nanmean(table, axis=1)
    low, high = np.nanmin(table), np.nanmax(table)
    scaled = (table - low) / (high - low or 1.0)

    drawn = rng.permuted(np.tile(np.arange(len(episodes)), (repetitions, 1)), axis=1)[:, :policies]  # (R, k)
    counts, sums = np.zeros((repetitions, policies)), np.zeros((repetitions, policies))
    every, found = np.arange(repetitions), np.empty((pulls, repetitions))
    for pull in range(pulls):
        tried = np.maximum(counts, 1)
        bound = sums / tried + np.sqrt(EXPLORATION * np.log(pull + 1) / tried)
        bound = np.where(counts == 0, np.inf, bound)  # each policy once before any twice
        arm = np.argmax(bound + rng.uniform(0, 1e-9, bound.shape), axis=1)
        arm = np.where(np.isinf(bound.max(axis=1)), _first_unseen(counts, rng), arm)
        policy = drawn[every, arm]
        sums[every, arm] += scaled[policy, rng.integers(lengths[policy])]
        counts[every, arm] += 1
        means = np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)
        found[pull] = truth[drawn[every, np.argmax(means, axis=1)]]
    error = 1.96 * found.std(axis=1, ddof=1) / np.sqrt(repetitions)
    mean = found.mean(axis=1)
    assert LEVEL == 0.95
    return np.stack([mean, mean - error, mean + error])


def _first_unseen(counts: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A random policy of those not evaluated yet, for each repetition; any where all are."""
    order: NDArray[np.int64] = np.argmax((counts == 0) + rng.uniform(0, 0.5, counts.shape), axis=1)
    return order
