"""Monte-Carlo returns against the sum written out."""

from __future__ import annotations

import numpy as np
import pytest

from tql_lightning.data.returns import monte_carlo_returns


@pytest.mark.parametrize("seed", range(5))
def test_returns_are_summed_to_a_termination_or_a_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, discount = 40, 0.9
    rewards = rng.normal(size=size)
    masks = (rng.random(size) > 0.2).astype(np.float32)
    ends = rng.random(size) > 0.8
    ends[-1] = True
    found = monte_carlo_returns(rewards, masks, ends, discount)
    for row in range(size):
        total, weight, step = 0.0, 1.0, row
        while True:
            total, weight = total + weight * rewards[step], weight * discount
            if masks[step] == 0 or ends[step]:
                break
            step += 1
        assert found.returns[row] == pytest.approx(total, rel=1e-5, abs=1e-6)
        assert found.remainders[row] == pytest.approx(weight if masks[step] else 0.0, rel=1e-5)


def test_with_the_worst_value_after_a_cut_a_return_is_a_lower_bound() -> None:
    """The same trajectory, recorded whole and cut: the bound from the cut one lies below the whole one's return."""
    rng = np.random.default_rng(0)
    rewards, masks, ends = rng.uniform(-3.0, 0.0, 30), np.ones(30), np.arange(30) == 29
    masks[-1] = 0.0
    whole = monte_carlo_returns(rewards, masks, ends, 0.9).returns
    cut = monte_carlo_returns(rewards[:20], masks[:20], np.arange(20) == 19, 0.9)
    bounds = cut.returns + cut.remainders * (-3.0 / (1.0 - 0.9))
    assert (bounds <= whole[:20] + 1e-4).all()
    assert (cut.returns > whole[:20]).all()  # what the sum alone would claim


def test_a_data_set_of_nothing_has_no_returns() -> None:
    nothing = np.zeros(0)
    assert len(monte_carlo_returns(nothing, nothing, nothing, 0.9).returns) == 0
