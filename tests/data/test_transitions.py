"""What a dataset promises, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tql_lightning.data.transitions import ACTION_LIMIT, DatasetError, TransitionDataset, normalized_score


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


def test_the_range_of_actions_is_that_of_each_dimension_as_scaled() -> None:
    dataset = TransitionDataset.from_arrays(**arrays())
    low, high = dataset.action_range
    assert low == dataset.actions.min(axis=0).tolist()
    assert high == dataset.actions.max(axis=0).tolist()
    assert len(low) == dataset.action_dim


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


def test_arrays_that_need_no_change_are_not_copied() -> None:
    values = arrays(actions=np.zeros((5, 1), np.float32), rewards=np.arange(5.0)[::-1].astype(np.float32)[::-1])
    values["observations"] = values["observations"].astype(np.float32)
    dataset = TransitionDataset.from_arrays(**values)
    assert dataset.observations is values["observations"]
    assert dataset.actions is values["actions"]
    assert dataset.rewards.flags.c_contiguous, "tensors cannot be made of rows that run backwards"
    assert dataset.rewards.tolist() == list(range(5))


def test_scores_lie_between_random_and_expert_and_reach_the_checkpoint() -> None:
    from tql_lightning.data.datamodule import OfflineDataModule

    dataset = TransitionDataset.from_arrays(**arrays(reference_scores=(-10.0, 30.0)))
    assert dataset.reference_scores is not None
    assert normalized_score([-10.0, 10.0, 30.0, 50.0], dataset.reference_scores).tolist() == [0.0, 50.0, 100.0, 150.0]
    assert OfflineDataModule(dataset).state_dict()["reference_scores"] == (-10.0, 30.0)
    assert OfflineDataModule(TransitionDataset.from_arrays(**arrays())).state_dict()["reference_scores"] is None


def test_holding_out_keeps_whole_last_episodes() -> None:
    dataset = TransitionDataset.from_arrays(**arrays()).hold_out(0.5)
    assert len(dataset) == 3
    assert dataset.validation is not None
    assert len(dataset.validation) == 2
    with pytest.raises(DatasetError, match="leaves none to train on"):
        dataset.hold_out(0.5)
