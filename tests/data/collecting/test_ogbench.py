"""Datasets made as OGBench makes its own, compared with what it publishes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tql_lightning.data.collecting.collect import collect
from tql_lightning.data.collecting.ogbench import KINDS, _collector, _cube_stays_visible
from tql_lightning.data.collecting.pointmaze import maze_cells
from tql_lightning.data.sources.npz import read_npz
from tql_lightning.data.sources.ogbench import COLLECTABLE, dataset_file, load_ogbench, without_display_warnings
from tql_lightning.data.sources.schema import validation_path

# What making an OGBench environment warns of where there is no display.
pytestmark = pytest.mark.filterwarnings("ignore:.*DISPLAY environment variable")


@pytest.mark.slow
def test_play_data_has_the_official_format(play_folder: Path) -> None:
    path = dataset_file("cube-single-play", str(play_folder))
    assert sorted(file.name for file in play_folder.iterdir()) == sorted([path.name, validation_path(path).name])
    arrays = read_npz(path)
    shapes = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
    assert shapes == {
        "observations": ((101, 28), "float32"),
        "actions": ((101, 5), "float32"),
        "terminals": ((101,), "bool"),
        "qpos": ((101, 21), "float32"),
        "qvel": ((101, 20), "float32"),
    }
    assert np.flatnonzero(arrays["terminals"]).tolist() == [100]
    # The oracle moves the gripper, and its noise keeps the actions from repeating.
    assert len(np.unique(arrays["actions"][:, 0])) > 50
    np.testing.assert_array_equal(arrays["qpos"][:, :6], arrays["observations"][:, :6])


# What OGBench publishes of its files: sizes of observation, action, positions and velocities, steps of an episode, and
# arrays beside the usual (arXiv 2410.20092, appendix; the project's table of datasets).
OFFICIAL: dict[str, tuple[int, int, int, int, int, set[str]]] = {
    "pointmaze-medium": (2, 2, 2, 2, 1000, set()),
    "pointmaze-large": (2, 2, 2, 2, 1000, set()),
    "pointmaze-giant": (2, 2, 2, 2, 2000, set()),
    "pointmaze-teleport": (2, 2, 2, 2, 1000, set()),
    "cube-single": (28, 5, 21, 20, 1000, set()),
    "puzzle-4x4": (83, 5, 30, 30, 1000, {"button_states"}),
}
SLOW = {"cube-single", "puzzle-4x4"}


@pytest.mark.parametrize(
    "environment", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in OFFICIAL]
)
def test_statistics_are_those_that_ogbench_publishes(environment: str, tmp_path: Path) -> None:
    from ogbench.utils import make_env_and_datasets

    observation, action, positions, velocities, steps, more = OFFICIAL[environment]
    domain = f"{environment}-{KINDS[environment]}"
    path = dataset_file(domain, str(tmp_path))
    assert collect(environment, steps, workers=1, output=str(path)).transitions == steps
    for file in (path, validation_path(path)):
        arrays = read_npz(file)
        assert arrays.keys() == {"observations", "actions", "terminals", "qpos", "qvel"} | more
        widths = {"observations": observation, "actions": action, "qpos": positions, "qvel": velocities}
        for name, width in widths.items():
            assert (arrays[name].shape, arrays[name].dtype) == ((steps + 1, width), np.float32), name
        assert (arrays["terminals"].dtype, np.flatnonzero(arrays["terminals"]).tolist()) == (bool, [steps])
        assert np.abs(arrays["actions"]).max() <= 1.0
    for compact in (False, True):
        with without_display_warnings():
            env, train, held_out = make_env_and_datasets(
                f"{domain}-singletask-v0", dataset_path=str(path), compact_dataset=compact
            )
        env.close()
        for part in (train, held_out):
            assert part["observations"].shape == (steps + compact, observation)
            assert part["rewards"].shape == part["masks"].shape == (steps + compact,)


def test_a_maze_is_navigated_from_goal_to_goal_with_the_official_noise(tmp_path: Path) -> None:
    path = dataset_file("pointmaze-medium-navigate", str(tmp_path))
    collect("pointmaze-medium", 4000, workers=1, output=str(path), validation_transitions=1000)
    dataset = load_ogbench("pointmaze-medium-navigate", 1, str(tmp_path))
    assert (len(dataset), int(dataset.episode_ends.sum())) == (4000, 4)
    moved = dataset.next_observations - dataset.observations
    assert np.abs(moved).max() < 0.21  # an action of 1 moves the point by 0.2; walls stop it
    # A clipped direction with noise of 0.5: where the way is straight, one action is about 1 and the other 0.
    along, across = np.sort(np.abs(dataset.actions), axis=1)[:, ::-1].T
    assert 0.75 < along.mean() < 0.9
    assert 0.2 < across.mean() < 0.5
    visited = {tuple(cell) for cell in np.round(dataset.observations / 4.0).astype(int)}
    assert len(visited) > 15  # of 26 free cells, whatever the goals


def test_an_episode_of_play_is_a_function_of_its_seeds_alone() -> None:
    keys = [(3, 0, 0), (3, 1, 0)]
    forwards, backwards = _collector("cube-single", 40), _collector("cube-single", 40)
    expected = [forwards(key) for key in keys]
    for key, episode in zip(reversed(keys), reversed(expected), strict=True):
        found = backwards(key)
        assert found.keys() == episode.keys()
        assert all(np.array_equal(found[name], array) for name, array in episode.items())
    assert not np.array_equal(expected[0]["actions"], expected[1]["actions"])


def test_goals_lie_where_a_way_bends_branches_or_ends() -> None:
    maze_map = np.ones((5, 5), dtype=int)
    maze_map[1, 1:4] = maze_map[1:4, 3] = 0  # right, then down
    free, turning = maze_cells(maze_map)
    assert free == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)]
    assert turning == [(1, 1), (1, 3), (3, 3)]


def test_puzzles_record_their_buttons_and_leave_numpys_global_numbers_alone(tmp_path: Path) -> None:
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    collected = collect("puzzle-3x3", 10, workers=1, output=str(tmp_path / "p.npz"), validation_transitions=1)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002
    assert read_npz(collected.path)["button_states"].shape == (11, 9)
    assert read_npz(validation_path(collected.path))["observations"].shape == (11, 55)


@pytest.mark.parametrize(
    ("y", "z", "kept"), [(0.0, 0.02, True), (0.3, 0.02, False), (-0.31, 0.02, False), (-0.31, 0.07, True)]
)
def test_scenes_in_which_the_cube_gets_lost_are_dropped(y: float, z: float, kept: bool) -> None:
    qpos = np.zeros((4, 25), dtype=np.float32)
    qpos[2, 15:17] = y, z
    assert _cube_stays_visible(qpos) is kept


def test_what_the_loader_advises_to_collect_can_be() -> None:
    assert COLLECTABLE == KINDS
