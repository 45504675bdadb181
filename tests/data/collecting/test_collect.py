"""Datasets made from real environments."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tql_lightning.data.collecting.behaviours import random_behaviour
from tql_lightning.data.collecting.collect import collect
from tql_lightning.data.collecting.ogbench import KINDS
from tql_lightning.data.sources.npz import load_npz, read_npz
from tql_lightning.data.sources.schema import validation_path
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


@pytest.mark.filterwarnings("ignore:won. terminations. 3 of 3 episodes")  # each drives up the same hill
def test_a_true_termination_masks(tmp_path: Path) -> None:
    aimless: dict[str, Any] = {"behaviour": random_behaviour, "workers": 1}
    path = collect("MountainCarContinuous-v0", 1200, output=str(tmp_path / "m.npz"), **aimless).path
    assert read_npz(path)["truncations"].sum() == 2  # 999 steps, and a second episode in whole
    rng = {"behaviour": "tests.data.collecting.test_collect.pushing_along", "workers": 1}
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
    ("environment", "transitions"),
    [("Pendulum-v1", 1000), ("pointmaze-teleport", 60), pytest.param("cube-single", 20, marks=pytest.mark.slow)],
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
    "discrete actions": ({"environment": "CartPole-v1"}, r"expected a Box of actions of rank 1, found Discrete"),
    "no transitions": ({"transitions": 0}, r"transitions: expected at least 1, found 0"),
    "no workers": ({"workers": 0}, r"workers: expected at least 1, found 0"),
    "negative seed": ({"seed": -1}, r"seed: expected at least 0, found -1"),
    "not an npz": ({"output": "data.h5"}, r"output: expected a file ending in .npz, found data.h5"),
    "no behaviour": ({"behaviour": "nowhere.act"}, r"behaviour: expected an import path .*found nowhere.act"),
    "oracles' own": (
        {"environment": "scene", "behaviour": "tests.data.collecting.test_collect.full_torque"},
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
