"""OGBench's files, read through the ogbench package's own loader."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from tql_lightning.data.sources.ogbench import COLLECTABLE, TASKS, dataset_file, known_domains, load_ogbench
from tql_lightning.data.transitions import ACTION_LIMIT, DatasetError

# What making an OGBench environment warns of: no display, and bounds in float64.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*DISPLAY environment variable"),
    pytest.mark.filterwarnings("ignore:.*precision lowered by casting"),
]


def rewards_by_hand(folder: Path, env: Any) -> np.ndarray:
    """cube-single's reward, from the cube's place in the file and the task's target: 0 within 4 cm, else -1."""
    with np.load(dataset_file("cube-single-play", str(folder))) as file:
        cubes = file["qpos"][:-1, 14:17]
    return (np.linalg.norm(cubes - env.unwrapped._data.mocap_pos[0], axis=1) <= 0.04) - 1.0


@pytest.mark.parametrize("task", [1, 4])
def test_arrays_equal_those_of_the_ogbench_package(play_folder: Path, task: int) -> None:
    from ogbench import make_env_and_datasets

    env, train, held_out = make_env_and_datasets(f"cube-single-play-singletask-task{task}-v0", str(play_folder))
    dataset = load_ogbench("cube-single-play", task, str(play_folder))
    assert dataset.validation is not None
    assert dataset.env_id == f"ogbench:cube-single-singletask-task{task}-v0"
    for ours, theirs in ((dataset, train), (dataset.validation, held_out)):
        for name in ("observations", "next_observations", "rewards", "masks"):
            np.testing.assert_array_equal(getattr(ours, name), theirs[name], err_msg=name)
        np.testing.assert_array_equal(ours.episode_ends, theirs["terminals"] == 1.0)
        np.testing.assert_allclose(ours.actions, theirs["actions"].clip(-ACTION_LIMIT, ACTION_LIMIT), atol=1e-6)
    np.testing.assert_array_equal(dataset.rewards, rewards_by_hand(play_folder, env))
    env.close()


def test_a_reached_goal_masks_but_ends_no_episode(play_folder: Path, tmp_path: Path) -> None:
    import gymnasium
    import ogbench  # noqa: F401

    env = gymnasium.make("cube-single-singletask-task1-v0")
    env.reset()
    source = dataset_file("cube-single-play", str(play_folder))
    with np.load(source) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["qpos"][40:50, 14:17] = env.unwrapped._data.mocap_pos[0]
    env.close()
    np.savez(tmp_path / source.name, **arrays)
    dataset = load_ogbench("cube-single-play", 1, str(tmp_path))
    assert np.flatnonzero(dataset.masks == 0).tolist() == list(range(40, 50))
    assert np.flatnonzero(dataset.rewards == 0).tolist() == list(range(40, 50))
    assert np.flatnonzero(dataset.episode_ends).tolist() == [99]


def test_the_validation_file_is_optional(play_folder: Path, tmp_path: Path) -> None:
    shutil.copy(dataset_file("cube-single-play", str(play_folder)), tmp_path)
    assert load_ogbench("cube-single-play", dataset_dir=str(tmp_path)).validation is None


def test_the_environment_variable_names_the_folder(play_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OGBENCH_DATA_DIR", str(play_folder))
    assert len(load_ogbench("cube-single-play")) == 100


def test_without_settings_the_folder_is_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    from ogbench.utils import DEFAULT_DATASET_DIR

    monkeypatch.delenv("OGBENCH_DATA_DIR", raising=False)
    assert dataset_file("scene-play") == Path(DEFAULT_DATASET_DIR).expanduser() / "scene-play-v0.npz"


def test_every_known_domain_has_its_five_environments() -> None:
    import gymnasium

    domains = known_domains()
    assert {f"{environment}-{kind}" for environment, kind in COLLECTABLE.items()} <= set(domains)
    missing = [
        (domain, task)
        for domain in domains
        for task in TASKS
        if f"{domain.rpartition('-')[0]}-singletask-task{task}-v0" not in gymnasium.registry
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("domain", "task", "message"),
    [
        ("cube-single-play", 6, r"task: expected one of 1, 2, 3, 4, 5, found 6"),
        ("cube-single-play", 0, r"task: expected one of 1, 2, 3, 4, 5, found 0"),
        ("cube-singel-play", 1, r"found 'cube-singel-play'; did you mean cube-single-play"),
        ("cube-single", 1, r"found 'cube-single'; did you mean cube-single-play"),
        ("cube-single-navigate", 1, r"did you mean cube-single-"),
        ("visual-cube-single-play", 1, r"did you mean cube-single-play"),
        ("pixels", 1, r"such as cube-single-play, cube-double-play"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_fetched(
    domain: str, task: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=message):
        load_ogbench(domain, task, str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Points the ogbench package at a port where nobody listens, so that its download fails at once."""
    import ogbench.utils

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and so nobody else's
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.setattr(ogbench.utils, "DATASET_URL", address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield address


@pytest.mark.usefixtures("closed_port")
def test_a_failed_download_says_how_to_collect(tmp_path: Path) -> None:
    path = tmp_path / "cube-double-play-v0.npz"
    with pytest.raises(DatasetError) as caught:
        load_ogbench("cube-double-play", dataset_dir=str(tmp_path))
    first, command = str(caught.value).splitlines()
    assert str(path) in first
    assert command == f"tql collect cube-double --transitions 100000 --output {path}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("closed_port")
def test_no_collecting_is_advised_where_it_cannot_be_done(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"set TQL_OGBENCH_URL to a mirror, fetch it where there is a network$"):
        load_ogbench("antmaze-large-navigate", dataset_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"PK no archive", "damaged|not at all"),
        (None, "damaged"),
    ],
    ids=["empty", "no archive", "cut short"],
)
def test_a_damaged_file_is_named(content: bytes | None, message: str, play_folder: Path, tmp_path: Path) -> None:
    source = dataset_file("cube-single-play", str(play_folder))
    whole = source.read_bytes()
    path = tmp_path / source.name
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DatasetError, match=message) as caught:
        load_ogbench("cube-single-play", dataset_dir=str(tmp_path))
    assert str(path) in str(caught.value)


def test_a_file_without_the_states_of_the_simulation_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "cube-single-play-v0.npz", observations=np.ones((2, 3)), actions=np.ones((2, 1)))
    with pytest.raises(DatasetError, match="found no array terminals, qpos"):
        load_ogbench("cube-single-play", dataset_dir=str(tmp_path))


def test_a_file_of_another_environment_is_refused(play_folder: Path, tmp_path: Path) -> None:
    shutil.copy(dataset_file("cube-single-play", str(play_folder)), tmp_path / "puzzle-3x3-play-v0.npz")
    with pytest.raises(DatasetError, match="expected a dataset of OGBench for puzzle-3x3-singletask-task1-v0"):
        load_ogbench("puzzle-3x3-play", dataset_dir=str(tmp_path))


def test_the_whole_name_of_a_single_task_dataset_is_one_line(play_folder: Path) -> None:
    from ogbench import make_env_and_datasets

    named = load_ogbench("cube-single-play-singletask-task4-v0", dataset_dir=str(play_folder))
    assert named.env_id == "ogbench:cube-single-singletask-task4-v0"
    default = load_ogbench("cube-single-play-singletask-v0", dataset_dir=str(play_folder))
    assert default.env_id == "ogbench:cube-single-singletask-v0"
    theirs = make_env_and_datasets("cube-single-play-singletask-v0", str(play_folder), dataset_only=False)
    np.testing.assert_array_equal(default.rewards, theirs[1]["rewards"])
    theirs[0].close()
    with pytest.raises(DatasetError, match=r"task: expected 4 as in cube-single-play-singletask-task4-v0, found 2"):
        load_ogbench("cube-single-play-singletask-task4-v0", task=2, dataset_dir=str(play_folder))
    with pytest.raises(DatasetError, match=r"task: expected one of 1, 2, 3, 4, 5, found 7"):
        load_ogbench("cube-single-play-singletask-task7-v0", dataset_dir=str(play_folder))


@pytest.mark.parametrize("compact", [False, True], ids=["full", "compact"])
def test_files_saved_from_the_packages_loader_give_the_same_transitions(
    compact: bool, play_folder: Path, tmp_path: Path
) -> None:
    from ogbench.utils import load_dataset

    source = dataset_file("cube-single-play", str(play_folder))
    np.savez(tmp_path / source.name, **load_dataset(str(source), compact_dataset=compact, add_info=True))
    ours = load_ogbench("cube-single-play", 1, str(tmp_path))
    official = load_ogbench("cube-single-play", 1, str(play_folder))
    for name in ("observations", "actions", "next_observations", "rewards", "masks", "episode_ends"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(official, name), err_msg=name)


def test_the_download_fetches_both_files_and_shows_its_progress(
    play_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import ogbench.utils

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(play_folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(ogbench.utils, "DATASET_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    dataset = load_ogbench("cube-single-play-singletask-task1-v0", dataset_dir=str(tmp_path))
    server.shutdown()
    server.server_close()
    assert dataset.validation is not None
    shown = capfd.readouterr()
    assert "Downloading dataset from" in shown.out
    assert "cube-single-play-v0-val.npz: 100%" in shown.err
