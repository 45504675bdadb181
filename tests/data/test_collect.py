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

from tql_lightning.data.collect import collect
from tql_lightning.data.collect_ogbench import ORACLES, _cube_stays_visible, validation_file
from tql_lightning.data.gather import gather
from tql_lightning.data.sources.npz import load_npz, read_npz
from tql_lightning.data.sources.ogbench import COLLECTABLE, dataset_file
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
    path = collect("MountainCarContinuous-v0", 1200, workers=1, output=str(tmp_path / "m.npz")).path
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


@pytest.mark.parametrize(("environment", "transitions"), [("Pendulum-v1", 1000), ("cube-single", 20)])
def test_the_number_of_workers_changes_nothing(environment: str, transitions: int, tmp_path: Path) -> None:
    paths = [tmp_path / f"{workers}.npz" for workers in (1, 2)]
    for workers, path in enumerate(paths, start=1):
        collect(environment, transitions, seed=3, workers=workers, output=str(path))
    assert equal_files(*paths)
    if environment in ORACLES:
        assert equal_files(*map(validation_file, paths))
        assert not equal_files(paths[0], validation_file(paths[0]))


def test_another_seed_gives_other_data(tmp_path: Path) -> None:
    paths = [collect("Pendulum-v1", 200, seed, 1, str(tmp_path / f"{seed}.npz")).path for seed in (0, 1)]
    assert not equal_files(*paths)


def test_play_data_has_the_official_format(play_folder: Path) -> None:
    path = dataset_file("cube-single-play", str(play_folder))
    assert sorted(file.name for file in play_folder.iterdir()) == sorted([path.name, validation_file(path).name])
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


def test_puzzles_record_their_buttons_and_leave_numpys_global_numbers_alone(tmp_path: Path) -> None:
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    collected = collect("puzzle-3x3", 10, workers=1, output=str(tmp_path / "p.npz"), validation_transitions=1)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002
    assert read_npz(collected.path)["button_states"].shape == (11, 9)
    assert read_npz(validation_file(collected.path))["observations"].shape == (11, 55)


@pytest.mark.parametrize(
    ("y", "z", "kept"), [(0.0, 0.02, True), (0.3, 0.02, False), (-0.31, 0.02, False), (-0.31, 0.07, True)]
)
def test_scenes_in_which_the_cube_gets_lost_are_dropped(y: float, z: float, kept: bool) -> None:
    qpos = np.zeros((4, 25), dtype=np.float32)
    qpos[2, 15:17] = y, z
    assert _cube_stays_visible(qpos) is kept


def test_what_the_loader_advises_to_collect_can_be() -> None:
    assert set(COLLECTABLE) == set(ORACLES)


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
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
