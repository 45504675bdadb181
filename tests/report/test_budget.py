"""The tuning-budget curve: what is known of it without running a bandit."""

from __future__ import annotations

import numpy as np
import pytest

from tql_lightning.report.budget import budget_curve

EPISODES = [[0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0, 1.0], [0.5, 0.5]]
TRUTH = [0.25, 0.8, 0.5]


def test_one_policy_is_worth_the_mean_of_all_however_often_it_is_evaluated() -> None:
    mean, low, high = budget_curve(EPISODES, policies=1, pulls=5, repetitions=5000)
    assert np.ptp(mean) == 0.0
    assert low[0] < np.mean(TRUTH) < high[0]


def test_without_noise_the_best_of_k_is_known_after_k_episodes() -> None:
    certain = [[truth] for truth in TRUTH]
    mean = budget_curve(certain, policies=3, pulls=4, repetitions=3000)[0]
    best_of_two = np.mean([max(pair) for pair in [(0.25, 0.8), (0.25, 0.5), (0.8, 0.5)]])
    assert mean[0] == pytest.approx(np.mean(TRUTH), abs=0.02)
    assert mean[1] == pytest.approx(best_of_two, abs=0.02)
    assert mean[2:] == pytest.approx([0.8, 0.8])


def test_with_noise_more_episodes_find_the_best_policy() -> None:
    mean = budget_curve(EPISODES, policies=3, pulls=300)[0]
    assert mean[0] < mean[20] < mean[-1]
    assert mean[-1] == pytest.approx(0.8, abs=0.02)


def test_scores_may_have_any_scale() -> None:
    returns = [[100 * value - 700 for value in each] for each in EPISODES]
    expected = 100 * budget_curve(EPISODES, 2, 20) - 700
    np.testing.assert_allclose(budget_curve(returns, 2, 20), expected)


def test_too_few_policies_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 4 policies with episodes, found \[4, 5, 2\]"):
        budget_curve(EPISODES, 4, 10)
