"""Datasets made from real environments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tql_lightning.data.behaviours import random_behaviour
from tql_lightning.data.collect import collect
from tql_lightning.data.collect_ogbench import KINDS, _cube_stays_visible
from tql_lightning.data.files import validation_path
from tql_lightning.data.gather import gather
from tql_lightning.data.partial import KeptEpisodes
from tql_lightning.data.pointmaze import maze_cells
from tql_lightning.data.sources.npz import load_npz, read_npz
from tql_lightning.data.sources.ogbench import COLLECTABLE, dataset_file, load_ogbench, without_display_warnings
from tql_lightning.data.transitions import DatasetError

# What making an OGBench environment warns of where there is no display.
pytestmark = pytest.mark.filterwarnings("ignore:.*DISPLAY environment variable")


def equal_files(one: Path, other: Path) -> bool:
    left, right = read_npz(one), read_npz(other)
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


def full_torque(action_space: Any, _: np.random.Generator) -> Callable[[Any], Any]:
    """A user's own behaviour."""
    return lambda _: action_space.high


def test_the_quickstarts_dataset_is_bad_behaviour(tmp_path: Path) -> None:
    collected = collect("Pendulum-v1", output=str(tmp_path / "pendulum.npz"))
    assert (collected.transitions, collected.episodes) == (50_000, 250)
    dataset = load_npz(str(collected.path))
    returns = dataset.episode_returns()
    np.testing.assert_allclose([returns.mean(), returns.max()], [collected.mean_return, collected.best_return], 1e-6)
    assert -1150 <= returns.mean() <= -1030
    assert -400 <= returns.max() <= -250
    assert (dataset.observation_dim, dataset.action_dim, dataset.env_id) == (3, 1, "Pendulum-v1")
    assert dataset.action_high.tolist() == [2.0]


def test_a_time_limit_is_no_terminal_and_the_next_observation_is_the_true_one(tmp_path: Path) -> None:
    arrays = read_npz(collect("Pendulum-v1", 400, workers=1, output=str(tmp_path / "p.npz")).path)
    assert not arrays["terminations"].any()
    assert np.flatnonzero(arrays["truncations"]).tolist() == [199, 399]
    inside = ~arrays["truncations"][:-1]
    np.testing.assert_array_equal(arrays["next_observations"][:-1][inside], arrays["observations"][1:][inside])
    # The state after the limit is not the next episode's first: it follows from Pendulum's own equation.
    speed, torque = arrays["observations"][199, 2], arrays["actions"][199, 0]
    expected = speed + (15.0 * arrays["observations"][199, 1] + 3.0 * torque) * 0.05
    np.testing.assert_allclose(arrays["next_observations"][199, 2], np.clip(expected, -8, 8), atol=1e-4)
    assert (load_npz(str(tmp_path / "p.npz")).masks == 1).all()


def test_a_true_termination_masks(tmp_path: Path) -> None:
    aimless: dict[str, Any] = {"behaviour": random_behaviour, "workers": 1}
    path = collect("MountainCarContinuous-v0", 1200, output=str(tmp_path / "m.npz"), **aimless).path
    assert read_npz(path)["truncations"].sum() == 2  # 999 steps, and a second episode in whole
    rng = {"behaviour": "tests.data.test_collect.pushing_along", "workers": 1}
    path = collect("MountainCarContinuous-v0", 300, output=str(tmp_path / "won.npz"), **rng).path
    dataset = load_npz(str(path))
    ends = np.flatnonzero(dataset.episode_ends)
    assert len(dataset) > ends[0] + 1  # the first episode was won before it was cut
    assert dataset.masks[ends[0]] == 0
    assert (dataset.masks == 0).sum() == (dataset.rewards > 50).sum()


def pushing_along(action_space: Any, _: np.random.Generator) -> Callable[[Any], Any]:
    """Drives MountainCarContinuous up the hill in about 70 steps."""
    return lambda observation: np.where(observation[1:] < 0, action_space.low, action_space.high)


@pytest.mark.parametrize(
    ("environment", "transitions"), [("Pendulum-v1", 1000), ("cube-single", 20), ("pointmaze-teleport", 60)]
)
def test_the_number_of_workers_changes_nothing(environment: str, transitions: int, tmp_path: Path) -> None:
    paths = [tmp_path / f"{workers}.npz" for workers in (1, 2)]
    for workers, path in enumerate(paths, start=1):
        collect(environment, transitions, seed=3, workers=workers, output=str(path))
    assert equal_files(*paths)
    if environment in KINDS:
        assert equal_files(*map(validation_path, paths))
        assert not equal_files(paths[0], validation_path(paths[0]))


def test_another_seed_gives_other_data(tmp_path: Path) -> None:
    paths = [collect("Pendulum-v1", 200, seed, 1, str(tmp_path / f"{seed}.npz")).path for seed in (0, 1)]
    assert not equal_files(*paths)


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


def test_goals_lie_where_a_way_bends_branches_or_ends() -> None:
    maze_map = np.ones((5, 5), dtype=int)
    maze_map[1, 1:4] = maze_map[1:4, 3] = 0  # right, then down
    free, turning = maze_cells(maze_map)
    assert free == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)]
    assert turning == [(1, 1), (1, 3), (3, 3)]


def test_the_default_climbs_the_hill_that_random_actions_never_do(tmp_path: Path) -> None:
    dataset = load_npz(str(collect("MountainCarContinuous-v0", 20_000, output=str(tmp_path / "m.npz")).path))
    arrived = (dataset.masks == 0).sum() / dataset.episode_ends.sum()
    assert 0.3 < arrived < 0.9
    returns = dataset.episode_returns()
    assert returns.max() > 80 > returns.mean() + 20


@pytest.mark.parametrize(
    ("environment", "sizes", "steps"),
    [
        ("Reacher-v5", (10, 2), 50),
        ("tests.environments:SquareCountdown-v0", (2, 1), None),
        ("tests.environments:Reach-v0", (5, 2), None),
    ],
)
def test_any_environment_with_box_actions_can_be_collected(
    environment: str, sizes: tuple[int, int], steps: int | None, tmp_path: Path
) -> None:
    dataset = load_npz(str(collect(environment, 100, workers=1, output=str(tmp_path / "e.npz")).path))
    assert (dataset.observation_dim, dataset.action_dim) == sizes
    assert dataset.env_id == environment
    if steps:
        assert np.flatnonzero(dataset.episode_ends).tolist() == [steps - 1, 2 * steps - 1]


calls: list[None] = []


def stopping(action_space: Any, rng: np.random.Generator) -> Callable[[Any], Any]:
    """Acts at random; ends the fourth episode by what $STOP_BY says."""
    calls.append(None)
    if len(calls) == 4 and os.environ.get("STOP_BY") == "interrupt":
        raise KeyboardInterrupt
    if len(calls) == 4 and os.environ.get("STOP_BY") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return random_behaviour(action_space, rng)


def test_an_interrupted_collection_continues_to_the_very_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"environment": "Pendulum-v1", "transitions": 1400, "seed": 5, "behaviour": stopping}
    calls[:] = [None] * 4
    expected = collect(**settings, workers=1, output=str(tmp_path / "whole.npz"))
    path = tmp_path / "p.npz"
    for kept in (3, 6):
        calls.clear()
        monkeypatch.setenv("STOP_BY", "interrupt")
        with pytest.raises(KeyboardInterrupt):
            collect(**settings, workers=1, output=str(path))
        assert not path.exists()
        assert sum(read_npz(file)["lengths"].sum() for file in partial_files(path)) == 200 * kept
    with pytest.raises(
        DatasetError, match=r"p.npz.partial holds episodes .* seed 5 \(now 6\); continue it with the same"
    ):
        collect(**settings | {"seed": 6}, workers=1, output=str(path))
    monkeypatch.delenv("STOP_BY")
    capsys.readouterr()
    found = collect(**settings, workers=2, output=str(path))
    assert "continuing:  86%" in capsys.readouterr().err
    assert equal_files(found.path, expected.path)
    assert (found.mean_return, found.episodes) == (expected.mean_return, expected.episodes)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.npz", "whole.npz"]


def test_a_killed_collection_keeps_what_it_wrote_and_can_be_started_over(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    code = (
        "from tql_lightning.data import partial\n"
        "from tql_lightning.data.collect import collect\n"
        "partial.SECONDS_BETWEEN_PARTS = 0.0\n"
        f"collect('Pendulum-v1', 1400, 5, 1, {str(path)!r}, behaviour='tests.data.test_collect.stopping')"
    )
    environment = os.environ | {"STOP_BY": "kill"}
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [int(read_npz(file)["lengths"].sum()) for file in partial_files(path)] == [200] * 3
    calls[:] = [None] * 4
    continued = collect("Pendulum-v1", 1400, 5, 1, str(path), behaviour=stopping)
    fresh = collect("Pendulum-v1", 1400, 5, 1, str(tmp_path / "fresh.npz"), behaviour=stopping)
    assert equal_files(continued.path, fresh.path)


def test_what_was_kept_with_other_settings_is_dropped_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    kept = KeptEpisodes(path, {"seed": 1})
    kept.add({"actions": np.zeros((2, 1))})
    kept.write()
    assert len(KeptEpisodes(path, {"seed": 1}).load()) == 1
    assert KeptEpisodes(path, {"seed": 2}, overwrite=True).load() == []
    assert list(tmp_path.iterdir()) == []


def partial_files(output: Path) -> list[Path]:
    return sorted(output.with_name(f"{output.name}.partial").glob("episodes_*.npz"))


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


def test_default_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TQL_DATASETS", raising=False)
    assert collect("Pendulum-v1", 5, workers=1).path == Path("datasets/Pendulum-v1.npz")
    monkeypatch.setenv("TQL_DATASETS", str(tmp_path / "elsewhere"))
    assert collect("Pendulum-v1", 5, workers=1).path == tmp_path / "elsewhere" / "Pendulum-v1.npz"
    monkeypatch.setenv("OGBENCH_DATA_DIR", str(tmp_path / "play"))
    assert collect("cube-single", 5, workers=1).path == tmp_path / "play" / "cube-single-play-v0.npz"


def test_a_behaviour_may_be_a_function_or_its_import_path(tmp_path: Path) -> None:
    by_function = collect("Pendulum-v1", 9, 0, 1, str(tmp_path / "f.npz"), behaviour=full_torque)
    by_path = collect("Pendulum-v1", 9, 0, 1, str(tmp_path / "p.npz"), f"{__name__}.full_torque")
    assert equal_files(by_function.path, by_path.path)
    assert (read_npz(by_path.path)["actions"] == 2.0).all()


def test_an_episode_is_cut_at_the_number_of_transitions(tmp_path: Path) -> None:
    arrays = read_npz(collect("Pendulum-v1", 7, workers=1, output=str(tmp_path / "p.npz")).path)
    assert len(arrays["rewards"]) == 7
    assert (arrays["terminations"].sum(), np.flatnonzero(arrays["truncations"]).tolist()) == (0, [6])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown environment": ({"environment": "Pendulun-v1"}, r"environment: .*Pendulun.*OGBench's are cube-single"),
    "discrete actions": ({"environment": "CartPole-v1"}, r"expected actions in a Box of rank 1, found Discrete"),
    "no transitions": ({"transitions": 0}, r"transitions: expected at least 1, found 0"),
    "no workers": ({"workers": 0}, r"workers: expected at least 1, found 0"),
    "negative seed": ({"seed": -1}, r"seed: expected at least 0, found -1"),
    "not an npz": ({"output": "data.h5"}, r"output: expected a file ending in .npz, found data.h5"),
    "no behaviour": ({"behaviour": "nowhere.act"}, r"behaviour: expected an import path .*found nowhere.act"),
    "oracles' own": (
        {"environment": "scene", "behaviour": "tests.data.test_collect.full_torque"},
        r"its own oracles; leave it out",
    ),
    "held out by the loader": ({"validation_transitions": 5}, r"validation_fraction"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_arguments_are_refused_and_leave_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes, message = BAD[case]
    with pytest.raises(DatasetError, match=message):
        collect(**{"environment": "Pendulum-v1", "transitions": 5, "workers": 1} | changes)
    assert list(tmp_path.iterdir()) == []


def test_files_are_replaced_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    path.write_bytes(b"mine")
    with pytest.raises(DatasetError, match=r"p.npz exists already; pass --overwrite=true"):
        collect("Pendulum-v1", 5, workers=1, output=str(path))
    assert path.read_bytes() == b"mine"
    assert collect("Pendulum-v1", 5, workers=1, output=str(path), overwrite=True).transitions == 5
    held_out = tmp_path / "play-val.npz"
    held_out.write_bytes(b"official")
    with pytest.raises(DatasetError, match=r"play-val.npz exists already"):
        collect("cube-single", 5, workers=1, output=str(tmp_path / "play.npz"))


def failing(_: Any, rng: np.random.Generator) -> Callable[[Any], Any]:
    """Fails in some episodes only, as an unstable environment would."""
    if rng.random() < 0.5:
        raise RuntimeError("unstable")
    return lambda _: np.zeros(1, dtype=np.float32)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_episode_leaves_no_file_and_no_process(workers: int, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="unstable"):
        collect("Pendulum-v1", 5000, 0, workers, str(tmp_path / "p.npz"), behaviour=failing)
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if "QueueManager" in type(thread).__name__]


def report_threads() -> Callable[[tuple[int, ...]], dict[str, Any]]:
    return lambda key: {"actions": np.array([key[0], int(os.environ.get("OMP_NUM_THREADS", "0"))])[None]}


def test_workers_have_one_thread_each_and_the_caller_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    episodes = gather(report_threads, [(number,) for number in range(7)], workers=2, rows=7)
    assert [episode["actions"][0].tolist() for episode in episodes] == [[number, 1] for number in range(7)]
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


def report_process(marks: Path) -> Callable[[tuple[int, ...]], dict[str, Any]]:
    def episode(_: tuple[int, ...]) -> dict[str, Any]:
        (marks / str(os.getpid())).touch()
        time.sleep(0.05)
        return {"actions": np.zeros((1, 1))}

    return episode


def kill_worker() -> Callable[[tuple[int, ...]], dict[str, Any]]:
    return lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[return-value]


def test_a_killed_worker_is_reported() -> None:
    with pytest.raises(ChildProcessError, match="one of 2 collecting processes ended unasked"):
        gather(kill_worker, [(0,), (1,)], workers=2, rows=2)


def test_workers_do_not_outlive_a_killed_collection(tmp_path: Path) -> None:
    code = (
        "from functools import partial; from itertools import count; from pathlib import Path\n"
        "from tests.data.test_collect import report_process\n"
        "from tql_lightning.data.gather import gather\n"
        f"gather(partial(report_process, Path({str(tmp_path)!r})), ((n,) for n in count()), 2, 10**9)"
    )
    root = Path(__file__).parents[2]
    collecting = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: len(list(tmp_path.iterdir())) == 2), "two workers should have started"
    finally:
        collecting.kill()
        collecting.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert eventually(lambda: not any(running(worker) for worker in workers))


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 200.0  # where many wait for few cores; it is over as soon as the condition holds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
