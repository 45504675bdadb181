"""D4RL's HDF5 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats import write_d4rl
from tql_lightning.data.scores import normalized_score
from tql_lightning.data.sources.d4rl import load_d4rl
from tql_lightning.data.sources.d4rl_scores import REFERENCE_SCORES, dataset_name
from tql_lightning.data.transitions import DatasetError


def columns(**changes: Any) -> dict[str, Any]:
    """Rows 0-2 end in a timeout, rows 3-4 in a terminal, rows 5-6 with the file."""
    base: dict[str, Any] = {
        "observations": np.arange(14, dtype=np.float32).reshape(7, 2),
        "actions": np.linspace(-1, 1, 7, dtype=np.float32)[:, None],
        "rewards": np.arange(7, dtype=np.float32),
        "terminals": np.array([0, 0, 0, 0, 1, 0, 0], dtype=bool),
        "timeouts": np.array([0, 0, 1, 0, 0, 0, 0], dtype=bool),
    }
    return {name: value for name, value in (base | changes).items() if value is not None}


def test_a_timeout_ends_and_never_masks(tmp_path: Path) -> None:
    following = columns()["observations"] + 100.0
    dataset = load_d4rl(str(write_d4rl(tmp_path / "hopper_medium-v2.hdf5", **columns(next_observations=following))))
    assert dataset.masks.tolist() == [1, 1, 1, 1, 0, 1, 1]
    assert np.flatnonzero(dataset.episode_ends).tolist() == [2, 4, 6]
    np.testing.assert_array_equal(dataset.next_observations, following)


def test_missing_next_observations_stay_within_their_episode(tmp_path: Path) -> None:
    dataset = load_d4rl(str(write_d4rl(tmp_path / "x.hdf5", **columns())))
    # Where the rows at the time limit and at the end of the file led, nobody knows.
    assert dataset.rewards.tolist() == [0, 1, 3, 4, 5]
    assert dataset.next_observations[:, 0].tolist() == [2, 4, 8, 8, 12]
    assert dataset.masks.tolist() == [1, 1, 1, 0, 1]
    assert np.flatnonzero(dataset.episode_ends).tolist() == [1, 3, 4]


def test_a_file_without_timeouts_needs_the_time_limit(tmp_path: Path) -> None:
    path = str(write_d4rl(tmp_path / "x.hdf5", **columns(timeouts=None, next_observations=np.ones((7, 2)))))
    with pytest.raises(
        DatasetError, match=r"x.hdf5: expected an array timeouts, found none; give .* max_episode_steps"
    ):
        load_d4rl(path)
    # Episodes: rows 0-1, 2-3, 4 (terminal), 5-6.
    assert np.flatnonzero(load_d4rl(path, max_episode_steps=2).episode_ends).tolist() == [1, 3, 4, 6]
    assert np.flatnonzero(load_d4rl(path, max_episode_steps=5).episode_ends).tolist() == [4, 6]
    with pytest.raises(DatasetError, match="max_episode_steps: expected at least 1, found 0"):
        load_d4rl(path, max_episode_steps=0)


@pytest.mark.parametrize("timeouts", [None, np.zeros(30)], ids=["absent", "zeros"])
def test_the_time_limit_that_is_given_ends_episodes_whether_or_not_there_are_timeouts(
    timeouts: Any, tmp_path: Path
) -> None:
    file = write_d4rl(
        tmp_path / "x.hdf5",
        observations=np.arange(30.0)[:, None],
        actions=np.zeros((30, 1), np.float32),
        rewards=np.zeros(30),
        terminals=np.zeros(30),
        **({} if timeouts is None else {"timeouts": timeouts}),
    )
    dataset = load_d4rl(str(file), max_episode_steps=10)
    assert len(dataset) == 27, "where the last row of each of three episodes led is not known"
    assert np.flatnonzero(dataset.episode_ends).tolist() == [8, 17, 26]
    assert (dataset.next_observations == dataset.observations + 1).all(), "no transition crosses an episode's end"


def test_the_time_limit_counts_from_the_files_own_timeouts(tmp_path: Path) -> None:
    path = str(write_d4rl(tmp_path / "x.hdf5", **columns(next_observations=np.ones((7, 2)))))
    assert np.flatnonzero(load_d4rl(path, max_episode_steps=2).episode_ends).tolist() == [1, 2, 4, 6]


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.uint8])
def test_discrete_actions_of_rank_1_get_advice_that_fits(dtype: Any, tmp_path: Path) -> None:
    path = str(write_d4rl(tmp_path / "x.hdf5", **columns(actions=np.zeros(7, dtype))))
    with pytest.raises(DatasetError, match=r"x: actions: expected continuous actions .* found discrete .*shape \(7,\)"):
        load_d4rl(path)


def test_scores_are_found_by_the_files_name_or_given(tmp_path: Path) -> None:
    file = str(write_d4rl(tmp_path / "halfcheetah_medium_expert-v2.hdf5", **columns()))
    assert load_d4rl(file).reference_scores == (-280.178953, 12135.0)
    assert load_d4rl(file, dataset="pen-human-v1").reference_scores == (96.262799, 3076.8331017826877)
    other = str(write_d4rl(tmp_path / "mine.hdf5", **columns()))
    assert load_d4rl(other).reference_scores is None
    with pytest.raises(DatasetError, match=r"found 'hoper-medium-v2'; did you mean hopper-medium-v2"):
        load_d4rl(other, dataset="hoper-medium-v2")


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("walker2d_full_replay-v2", "walker2d-full-replay-v2"),
        ("door-cloned-v1", "door-cloned-v1"),
        ("maze2d-large-sparse-v1", "maze2d-large-v1"),
        ("maze2d-large-dense-v1", "maze2d-large-dense-v1"),
        ("mini_kitchen_microwave_kettle_light_slider-v0", "kitchen-complete-v0"),
        ("Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse", "antmaze-medium-play-v0"),
        ("Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse_fixed", "antmaze-umaze-diverse-v2"),
    ],
)
def test_published_files_have_scores(stem: str, name: str) -> None:
    assert dataset_name(stem) == name
    assert name in REFERENCE_SCORES


def test_an_expert_scores_a_hundred() -> None:
    for random, expert in REFERENCE_SCORES.values():
        assert random < expert
        np.testing.assert_allclose(normalized_score([random, expert], (random, expert)), [0.0, 100.0])


def test_actions_beyond_the_bounds_are_refused_or_scaled(tmp_path: Path) -> None:
    path = str(write_d4rl(tmp_path / "x.hdf5", **columns(actions=np.linspace(-2, 2, 7)[:, None])))
    with pytest.raises(DatasetError, match=r"actions: expected values in \[-1, 1\], found -2 .* range of \[-2, 2\]"):
        load_d4rl(path)
    assert load_d4rl(path, action_low=-2.0, action_high=[2.0]).actions[1, 0] == np.float32(-2 / 3)
