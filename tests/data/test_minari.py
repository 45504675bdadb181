"""Minari's datasets, made and read by the minari package."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import tests.environments  # noqa: F401  (registers its environments)
from tests.data.formats import record, write_minari
from tql_lightning.data.collecting.collect import collect
from tql_lightning.data.sources.minari import load_minari
from tql_lightning.data.sources.npz import load_npz
from tql_lightning.data.transitions import ACTION_LIMIT, DatasetError
from tql_lightning.evaluation.envs import make_env
from tql_lightning.online.watched_envs import WatchedEnvs

NAME = "toy/set-v0"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Minari, and no network."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("MINARI_REMOTE", "hf://nobody")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def written(env_id: str, episodes: int = 3, steps: int = 9, **settings: Any) -> list[Any]:
    """Writes random episodes of an environment under ``NAME`` and returns them."""
    env = gymnasium.make(env_id, **settings)
    buffers = record(env, episodes, steps)
    write_minari(NAME, env, buffers)
    env.close()
    return buffers


def test_transitions_are_those_that_were_recorded() -> None:
    buffers = written("Pendulum-v1", max_episode_steps=4)
    dataset = load_minari(NAME)
    row = 0
    for buffer in buffers:
        for step in range(len(buffer.rewards)):
            np.testing.assert_array_equal(dataset.observations[row], buffer.observations[step])
            np.testing.assert_array_equal(dataset.next_observations[row], buffer.observations[step + 1])
            expected = np.clip(buffer.actions[step] / 2.0, -ACTION_LIMIT, ACTION_LIMIT)
            np.testing.assert_allclose(dataset.actions[row], expected, atol=1e-6)
            assert dataset.rewards[row] == np.float32(buffer.rewards[step])
            row += 1
    assert row == len(dataset) == 12
    assert np.flatnonzero(dataset.episode_ends).tolist() == [3, 7, 11]
    assert dataset.masks.all(), "a time limit is no terminal"
    assert dataset.action_high.tolist() == [2.0]


def test_goals_follow_the_observation_and_terminations_mask() -> None:
    buffers = written("Reach-v0", episodes=5, steps=20)
    dataset = load_minari(NAME)
    episode = buffers[0].observations
    length = len(buffers[0].rewards)
    expected = np.concatenate([episode["observation"], episode["desired_goal"]], axis=1)
    np.testing.assert_array_equal(dataset.observations[:length], expected[:-1])
    np.testing.assert_array_equal(dataset.next_observations[:length], expected[1:])
    terminated = np.concatenate([buffer.terminations for buffer in buffers])
    assert 0 < terminated.sum() < len(buffers), "both ways to end are wanted here"
    np.testing.assert_array_equal(dataset.masks == 0, terminated)
    assert int(dataset.episode_ends.sum()) == len(buffers)
    assert dataset.env_id == "Reach-v0"


def test_the_environment_shows_the_columns_of_its_dataset() -> None:
    written("Reach-v0")
    dataset = load_minari(NAME)
    assert dataset.env_id is not None
    env = make_env(dataset.env_id)
    observation, _ = env.reset(seed=0)
    raw, _ = gymnasium.make("Reach-v0").reset(seed=0)
    np.testing.assert_array_equal(observation, [*raw["observation"], *raw["desired_goal"]])
    assert env.observation_space.shape == (dataset.observation_dim,)
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    assert (low == -1.0).all()
    assert (high == 1.0).all()


def test_an_environment_made_with_arguments_is_made_with_them_again() -> None:
    written("Pendulum-v1", g=3.0, max_episode_steps=5)
    env_id = load_minari(NAME).env_id
    assert env_id is not None
    env = make_env(env_id)
    assert env.unwrapped.g == 3.0  # type: ignore[attr-defined]
    env.reset(seed=0)
    cut = [env.step(np.zeros(1, dtype=np.float32))[3] for _ in range(5)]
    assert cut == [False] * 4 + [True]


def test_an_episode_that_was_cut_while_recording_ends_in_a_truncation() -> None:
    written("Pendulum-v1", episodes=2, steps=3)  # far from the time limit
    dataset = load_minari(NAME)
    assert dataset.episode_ends.tolist() == [False, False, True] * 2
    assert dataset.masks.all()


def test_the_evaluation_environment_is_the_one_that_the_scores_are_of() -> None:
    env = gymnasium.make("Pendulum-v1", max_episode_steps=5)
    own = gymnasium.make("Pendulum-v1", g=3.0)
    write_minari(NAME, env, record(env, 2, 3), eval_env=own, ref_min_score=-10.0, ref_max_score=0.0)
    dataset = load_minari(NAME)
    assert make_env(str(dataset.env_id)).unwrapped.g == 3.0  # type: ignore[attr-defined]
    assert dataset.reference_scores == (-10.0, 0.0)
    with pytest.warns(UserWarning, match=r"not of Pendulum-v1: there is no normalised score"):
        assert load_minari(NAME, env_id="Pendulum-v1").reference_scores is None


class Unsorted(gymnasium.Env[Any, Any]):
    """Observations in a nested dictionary whose keys are not in order."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self) -> None:
        box = gymnasium.spaces.Box(-9.0, 9.0, (1,), np.float32)
        inner = gymnasium.spaces.Dict(OrderedDict(y=box, x=box))
        self.observation_space = gymnasium.spaces.Dict(OrderedDict(velocity=box, position=inner, angle=box))

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        one, two, three, four = np.arange(1, 5, dtype=np.float32)[:, None]
        return {"velocity": four, "position": {"y": three, "x": two}, "angle": one}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, False, False, {}


def test_columns_of_a_dictionary_are_in_the_order_of_its_keys_wherever_it_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("Unsorted-v0", f"{__name__}:Unsorted", max_episode_steps=3, disable_env_checker=True)
    env = gymnasium.make("Unsorted-v0")
    observation = env.reset()[0]
    stacked = {
        "velocity": np.stack([observation["velocity"]] * 3),
        "angle": np.stack([observation["angle"]] * 3),
        "position": {key: np.stack([value] * 3) for key, value in observation["position"].items()},
    }
    (buffer,) = record(gymnasium.make("Pendulum-v1"), 1, 2)
    actions = [np.zeros(1, np.float32)] * 2
    write_minari(NAME, env, [replace(buffer, observations=stacked, actions=actions)])
    dataset = load_minari(NAME)
    written_down = load_npz(str(collect("Unsorted-v0", 3, workers=1, output=str(tmp_path / "collected.npz")).path))
    online = WatchedEnvs("Unsorted-v0", 1, parallel=False, timeout=60.0)
    every = np.array([True])
    reset, stepped = online.reset([0], every), online.step(np.zeros((1, 1), np.float32), every)[0]
    online.close()
    evaluated = make_env("Unsorted-v0").reset()[0]
    for columns in (dataset.observations[0], written_down.observations[0], evaluated, reset[0], stepped[0]):
        assert columns.tolist() == [1, 2, 3, 4]


def test_reference_scores_are_the_datasets() -> None:
    env = gymnasium.make("Pendulum-v1")
    write_minari(NAME, env, record(env, 2, 3), ref_min_score=-1500.0, ref_max_score=-100.0)
    assert load_minari(NAME).reference_scores == (-1500.0, -100.0)


def test_held_out_episodes_are_the_last() -> None:
    written("Pendulum-v1", episodes=4, max_episode_steps=3)
    dataset = load_minari(NAME, validation_fraction=0.25)
    assert dataset.validation is not None
    assert (len(dataset), len(dataset.validation)) == (9, 3)


def test_without_network_the_message_lists_what_is_cached() -> None:
    written("Pendulum-v1")
    with pytest.raises(DatasetError) as caught:
        load_minari("mujoco/hopper/expert-v0")
    first, cached = str(caught.value).splitlines()
    assert first.startswith("mujoco/hopper/expert-v0: not cached, and its download failed (")
    assert first.endswith("fetch it where there is a network with: minari download mujoco/hopper/expert-v0")
    assert cached == f"cached: {NAME}"
    with pytest.raises(DatasetError, match=r"found none; did you mean toy/set-v0\? cached: toy/set-v0"):
        load_minari("toy/sett-v0", download=False)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        (
            "CartPole-v1",
            r"toy/set-v0: actions: expected a Box of actions of rank 1, found Discrete\(2\); policies here",
        ),
        (
            "DiscreteObservations-v0",
            r"toy/set-v0: observations: expected a Box or a Dict of Boxes, found Discrete\(3\)",
        ),
    ],
)
def test_spaces_that_are_no_numbers_are_refused(env_id: str, message: str) -> None:
    written(env_id)
    with pytest.raises(DatasetError, match=message):
        load_minari(NAME)


def test_actions_outside_the_space_are_refused_with_their_range() -> None:
    env = gymnasium.make("Pendulum-v1")
    (buffer,) = record(env, 1, 3)
    actions = [np.array([0.0], np.float32), np.array([2.5], np.float32), np.array([-1.0], np.float32)]
    write_minari(NAME, env, [replace(buffer, actions=actions)])
    with pytest.raises(
        DatasetError, match=r"values in \[-2, 2\], found 2.5 at index \(1, 0\) and a range of \[-1, 2.5\]"
    ):
        load_minari(NAME)


@pytest.mark.parametrize("file", ["main_data.hdf5", "metadata.json"])
def test_a_damaged_dataset_is_named(file: str, cache: Path) -> None:
    written("Pendulum-v1")
    (path,) = cache.glob(f"toy/set-v0/data/{file}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"toy/set-v0: expected a whole dataset of Minari, .* minari delete toy/"):
        load_minari(NAME)


def test_bounds_that_are_not_finite_are_refused(cache: Path) -> None:
    written("Pendulum-v1")
    path = cache / NAME / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    space = json.loads(metadata["action_space"])
    metadata["action_space"] = json.dumps(space | {"low": [float("-inf")]})
    path.write_text(json.dumps(metadata))
    with pytest.raises(
        DatasetError, match=r"toy/set-v0: actions: expected bounded actions, each with low < high, found Box\(-inf, 2"
    ):
        load_minari(NAME)


def test_another_environment_takes_the_place_of_one_that_cannot_be_made(cache: Path) -> None:
    written("Pendulum-v1")
    path = cache / NAME / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    wrapper = {"name": "Half", "entry_point": "not_here:Half", "kwargs": {}}
    metadata["env_spec"] = json.dumps(json.loads(metadata["env_spec"]) | {"additional_wrappers": [wrapper]})
    path.write_text(json.dumps(metadata))
    with pytest.raises(DatasetError, match=r"not_here:Half'?; name the environment by its id"):
        load_minari(NAME)
    assert load_minari(NAME, env_id="Pendulum-v1").env_id == "Pendulum-v1"
