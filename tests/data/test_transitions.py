"""What a dataset promises, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tql_lightning.data.scores import normalized_score
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


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.int8, np.uint8])
def test_actions_that_are_discrete_by_their_dtype_are_refused(dtype: Any) -> None:
    with pytest.raises(DatasetError, match=rf"toy: actions: .* found discrete ones of dtype {np.dtype(dtype)}"):
        TransitionDataset.from_arrays(**arrays(actions=np.ones((5, 1), dtype)))


def episodes_of(lengths: list[int], **changes: Any) -> dict[str, Any]:
    """Episodes that all terminate."""
    ends = np.zeros(sum(lengths))
    ends[np.cumsum(lengths) - 1] = 1
    rows = np.zeros((len(ends), 1))
    base = {"observations": rows, "actions": rows, "rewards": rows[:, 0], "next_observations": rows, "name": "toy"}
    return base | {"terminations": ends, "truncations": np.zeros(len(ends))} | changes


@pytest.mark.parametrize("lengths", [[4, 4, 4], [4, 4, 4, 2], [3, 4, 1, 4, 4, 2]])
def test_dones_that_are_given_as_terminations_are_warned_of(lengths: list[int]) -> None:
    dones = episodes_of(lengths)
    with pytest.warns(UserWarning, match=rf"toy: terminations: 3 of {len(lengths)} episodes terminate after exactly 4"):
        TransitionDataset.from_arrays(**dones)
    with pytest.warns(UserWarning, match="looks like a time limit"):
        TransitionDataset.from_arrays(**dones | {"truncations": dones["terminations"]})


@pytest.mark.parametrize(
    "real",
    [
        episodes_of([4, 3, 4]),
        episodes_of([4, 4, 3, 4, 5]),
        episodes_of([1, 1, 1, 1]),
        episodes_of([4, 4, 4], terminations=np.zeros(12), truncations=episodes_of([4, 4, 4])["terminations"]),
    ],
    ids=["lengths differ", "one is longer", "one step each", "truncations"],
)
def test_episodes_that_need_no_time_limit_are_not_warned_of(real: dict[str, Any]) -> None:
    assert len(TransitionDataset.from_arrays(**real)) > 0  # warnings are errors


@pytest.mark.parametrize("name", [Path("of/toy"), np.str_("of/toy")])
def test_name_and_environment_are_kept_as_plain_text(name: Any) -> None:
    dataset = TransitionDataset.from_arrays(**arrays(name=name, env_id=np.str_("Toy-v0")))
    assert (type(dataset.name), type(dataset.env_id)) == (str, str)
    assert (dataset.name, dataset.env_id) == ("of/toy", "Toy-v0")


def test_an_environment_that_is_no_text_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"toy: env_id: expected text, found object; .* to_json"):
        TransitionDataset.from_arrays(**arrays(env_id=object()))


def test_reference_scores_do_not_go_with_another_environment() -> None:
    dataset = TransitionDataset.from_arrays(**arrays(env_id="module:Toy-v0", reference_scores=[0.0, 1.0]))
    assert dataset.evaluated_in(None).reference_scores == dataset.evaluated_in("Toy-v0").reference_scores == (0.0, 1.0)
    with pytest.warns(UserWarning, match="reference scores are of module:Toy-v0, not of Other-v0"):
        other = dataset.evaluated_in("Other-v0")
    assert (other.env_id, other.reference_scores) == ("Other-v0", None)
    unnamed = TransitionDataset.from_arrays(**arrays(reference_scores=[0.0, 1.0]))
    assert unnamed.evaluated_in("Other-v0").reference_scores == (0.0, 1.0)
