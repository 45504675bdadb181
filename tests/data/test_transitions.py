"""What a dataset promises, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tql_lightning.data.transitions import ACTION_LIMIT, DatasetError, TransitionDataset


def arrays(**changes: Any) -> dict[str, Any]:
    """Two episodes: rows 0-2 cut by a time limit, rows 3-4 terminated."""
    base: dict[str, Any] = {
        "observations": np.arange(10.0).reshape(5, 2),
        "actions": np.array([[0.0], [0.5], [-0.5], [1.0], [-1.0]]),
        "rewards": np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
        "terminations": np.array([0, 0, 0, 0, 1]),
        "truncations": np.array([0, 0, 1, 0, 0]),
        "next_observations": np.arange(10.0).reshape(5, 2) + 2.0,
        "name": "toy",
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def test_only_a_termination_masks_and_both_end_an_episode() -> None:
    dataset = TransitionDataset.from_arrays(**arrays())
    assert dataset.masks.tolist() == [1, 1, 1, 1, 0]
    assert dataset.episode_ends.tolist() == [False, False, True, False, True]
    assert dataset.episode_returns().tolist() == [6.0, 9.0]


def test_rewards_of_continuing_and_of_final_transitions_are_told_apart_by_masks() -> None:
    dataset = TransitionDataset.from_arrays(**arrays())
    assert (dataset.reward_range, dataset.final_reward_range) == ((1.0, 4.0), (5.0, 5.0))
    assert (
        TransitionDataset.from_arrays(
            **arrays(terminations=np.zeros(5), truncations=np.array([0, 0, 1, 0, 1]))
        ).final_reward_range
        is None
    )
    assert TransitionDataset.from_arrays(**arrays(terminations=np.ones(5))).reward_range is None


def test_missing_next_observations_never_cross_an_episode_end() -> None:
    dataset = TransitionDataset.from_arrays(**arrays(next_observations=None))
    # Row 2 was cut short: where it led is not known, so it is left out. Row 4 terminated: it stays.
    assert dataset.rewards.tolist() == [1, 2, 4, 5]
    assert dataset.observations[:, 0].tolist() == [0, 2, 6, 8]
    assert dataset.next_observations[:, 0].tolist() == [2, 4, 8, 8]
    assert dataset.episode_ends.tolist() == [False, True, False, True]
    assert dataset.masks.tolist() == [1, 1, 1, 0]


def test_a_terminated_row_never_shows_the_next_episode() -> None:
    dataset = TransitionDataset.from_arrays(
        **arrays(next_observations=None, terminations=[0, 1, 0, 0, 1], truncations=np.zeros(5))
    )
    assert dataset.next_observations[:, 0].tolist() == [2, 2, 6, 8, 8]
    assert dataset.masks.tolist() == [1, 0, 1, 1, 0]
    assert dataset.episode_ends.tolist() == [False, True, False, False, True]


def test_a_termination_on_the_time_limit_still_masks() -> None:
    dataset = TransitionDataset.from_arrays(**arrays(terminations=[0, 0, 1, 0, 1]))
    assert dataset.masks.tolist() == [1, 1, 0, 1, 0]


def test_actions_are_scaled_by_the_bounds_and_kept_inside_one() -> None:
    dataset = TransitionDataset.from_arrays(
        **arrays(actions=np.array([[0.0], [2.0], [4.0], [1.0], [3.0]]), action_low=0.0, action_high=4.0)
    )
    expected = [-ACTION_LIMIT, 0.0, ACTION_LIMIT, -0.5, 0.5]
    np.testing.assert_allclose(dataset.actions[:, 0], expected, atol=1e-7)
    assert dataset.action_low.tolist() == [0.0]


def test_holding_out_keeps_whole_last_episodes() -> None:
    dataset = TransitionDataset.from_arrays(**arrays()).hold_out(0.5)
    assert len(dataset) == 3
    assert dataset.validation is not None
    assert len(dataset.validation) == 2
    with pytest.raises(DatasetError, match="leaves none to train on"):
        dataset.hold_out(0.5)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"rewards": [1.0, np.nan, 1, 1, 1]}, r"rewards: .*nan at index \(1,\)"),
    "infinite": ({"observations": np.full((5, 2), np.inf)}, r"observations: .*inf at index \(0, 0\)"),
    "too large for float32": ({"rewards": [1.0, 1.0, 1e300, 1, 1]}, r"rewards: .*1e\+300 at index \(2,\)"),
    "unequal lengths": ({"rewards": np.ones(4)}, r"rewards: expected 5 transitions .* found 4"),
    "rank": ({"actions": np.ones(5)}, r"actions: expected shape \(transitions, size\), found \(5,\)"),
    "flat observations": ({"observations": np.ones(5)}, r"observations: expected shape"),
    "rewards of rank 2": ({"rewards": np.ones((5, 1))}, r"rewards: expected shape \(transitions,\)"),
    "strings": ({"rewards": np.array(["a"] * 5)}, r"rewards: expected numbers, found dtype"),
    "empty": ({"observations": np.ones((0, 2))}, r"observations: expected at least one transition"),
    "no columns": ({"actions": np.ones((5, 0))}, r"actions: expected at least one"),
    "flags": ({"terminations": [0, 0, 2, 0, 1]}, r"terminations: expected 0 or 1 .*found 2 at index 2"),
    "outside bounds": ({"actions": np.full((5, 1), 2.0)}, r"actions: .*found 2 at index \(0, 0\) and a range"),
    "bounds": ({"action_low": 1.0, "action_high": -1.0}, r"action bounds: expected finite action_low <"),
    "bounds' size": ({"action_low": [-1.0, -1.0]}, r"action_low: expected 1 bounds"),
    "no end": ({"terminations": np.zeros(5)}, r"the last transition neither terminates nor is truncated"),
    "next observations": ({"next_observations": np.ones((5, 3))}, r"next_observations: expected shape \(5, 2\)"),
    "one row each": (
        {"next_observations": None, "truncations": np.ones(5), "terminations": np.zeros(5)},
        r"nothing is left",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_with_field_place_and_remedy(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(DatasetError, match=message):
        TransitionDataset.from_arrays(**arrays(**changes))
