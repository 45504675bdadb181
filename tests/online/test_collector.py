"""An online phase collects with the exploring policy, continues bit for bit, and survives its environments' faults."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from tests.command_line import PATIENCE
from tests.online.runs import OFFLINE, SWING, EndsAt, go
from tests.toy import toy_dataset, toy_model
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.data.checks import ACTION_LIMIT
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.replay import ReplayBuffer
from tql_lightning.evaluation.envs import EnvError, make_env
from tql_lightning.evaluation.rollout import episode_noise, reset_seed, reset_seeds
from tql_lightning.online.collector import STREAM, Collector
from tql_lightning.online.progress import Progress
from tql_lightning.online.settings import Online
from tql_lightning.report.runs import Run
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.training.resuming import refuse_changes

TWO = Online(steps=60, num_envs=2, env_id=SWING)
MEASURED = ("per_second", "share_of_time")


def collected(trainer: Trainer) -> tuple[ReplayBuffer, Progress]:
    """Buffer and progress of a run."""
    collector: Any = trainer.datamodule.experience  # type: ignore[attr-defined]
    return collector._buffer, collector._at


def outcome(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Everything that has to be the same bit for bit."""
    buffer, progress = collected(trainer)
    with (folder / "metrics.csv").open() as file:
        rows = [
            {name: value for name, value in row.items() if value and not name.endswith(MEASURED)}
            for row in csv.DictReader(file)
        ]
    weights = {name: tensor.clone() for name, tensor in trainer.lightning_module.state_dict().items()}
    moments = trainer.optimizers[0].state_dict()["state"]
    arrays = {name: array.copy() for name, array in buffer.arrays.items()}
    return {"rows": rows, "weights": weights, "moments": moments, **arrays, **progress.state()}


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    assert found.keys() == expected.keys()
    return [name for name in expected if not _equal(found[name], expected[name])]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray | torch.Tensor) else bool(one == other)


@cache
def uninterrupted(chunk: int = 1) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        return outcome(go(Path(name), TWO, chunk=chunk), Path(name))


@pytest.mark.parametrize(("stops", "chunk"), [pytest.param((2, 5, 50), 1, marks=pytest.mark.slow), ((5, 31), 2)])
def test_a_run_that_is_stopped_and_continued_is_the_whole_run_bit_for_bit(
    stops: tuple[int, ...], chunk: int, tmp_path: Path
) -> None:
    for stop in stops:
        assert go(tmp_path, TWO, EndsAt(stop), chunk=chunk).global_step == stop
    assert differing(outcome(go(tmp_path, TWO, chunk=chunk), tmp_path), uninterrupted(chunk)) == []


@pytest.mark.slow  # a process of its own
def test_a_killed_run_continues_bit_for_bit(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.online.runs", str(tmp_path), "kill"]
    root = Path(__file__).parents[2]
    killed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert differing(outcome(go(tmp_path, TWO), tmp_path), uninterrupted()) == []


@pytest.mark.slow  # two processes
def test_two_processes_collect_what_one_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.online.runs", str(tmp_path / "two"), "two"]
    root = Path(__file__).parents[2]
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert finished.returncode == 0, finished.stderr[-3000:]
    one = go(tmp_path / "one", TWO, model=toy_model().double(), precision="64-true")
    for name, array in collected(one)[0].arrays.items():
        np.testing.assert_allclose(np.load(tmp_path / "two" / "replay" / f"{name}.npy"), array, atol=1e-5)


def test_an_environment_that_comes_to_another_state_ends_its_episode_with_a_warning(tmp_path: Path) -> None:
    go(tmp_path, TWO, EndsAt(50))  # after 23 steps of each environment
    file = tmp_path / "replay" / "actions.npy"
    actions = np.load(file)
    actions[21] = -actions[21]  # in the first environment's second episode
    np.save(file, actions)
    with pytest.warns(UserWarning, match="environments 0 did not come to the same observations again"):
        trainer = go(tmp_path, TWO)
    _, progress = collected(trainer)
    assert trainer.global_step == OFFLINE + 60
    assert progress.episodes.tolist() == [[0, 0, 19], [1, 0, 19], [0, 20, 22]]
    assert progress.first.tolist() == [23, 20]


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_episodes_are_played_by_the_exploring_policy_chunks_open_loop(chunk: int, tmp_path: Path) -> None:
    model = toy_model(action_chunk=chunk, learning_rate=0.0)
    trainer = go(tmp_path, TWO, model=model, chunk=chunk)
    buffer, progress = collected(trainer)
    assert len(progress.episodes) == 2
    for lane, first, last in progress.episodes.tolist():
        env = make_env(SWING)
        number = lane  # first episodes
        observation, _ = env.reset(seed=reset_seed(STREAM, number))
        assert number not in reset_seeds(0, 50), "training must not see the evaluation's episodes"
        noises = episode_noise(STREAM, number, range(last - first + 1), (chunk,))
        for step in range(last - first + 1):
            if step % chunk == 0:
                with torch.no_grad():
                    decided = model.actor().act(torch.from_numpy(observation)[None], noises[step : step + 1])[0]
            action = decided.numpy()[step % chunk : step % chunk + 1].clip(-ACTION_LIMIT, ACTION_LIMIT)
            stored = {name: buffer.read(name, lane, first + step, first + step + 1)[0] for name in buffer.arrays}
            np.testing.assert_allclose(stored["actions"], action, atol=1e-6)
            np.testing.assert_array_equal(stored["observations"], observation)
            observation, reward, terminated, truncated, _ = env.step(stored["actions"])
            assert stored["rewards"] == np.float32(reward)
            np.testing.assert_array_equal(stored["next_observations"], observation)
        assert truncated
        assert not terminated
        assert stored["masks"] == 1.0, "a time limit never masks"


def test_a_termination_masks_and_figures_are_logged_beside_environment_steps(tmp_path: Path) -> None:
    online = Online(steps=40, updates_per_env_step=0.5, num_envs=2, start_steps=10, env_id="tests.environments:Toy-v0")
    evaluation = RolloutEvaluation(episodes=2, every_n_updates=1_000, env_id="tests.environments:Toy-v0")
    trainer = go(tmp_path, online, evaluation)
    buffer, progress = collected(trainer)
    assert trainer.global_step == OFFLINE + 15
    assert progress.rounds == 20
    ends = {(lane, last) for lane, _, last in progress.episodes.tolist()}
    masks = {(lane, step): buffer.read("masks", lane, step, step + 1)[0] for lane in (0, 1) for step in range(20)}
    assert all((mask == 0.0) == (place in ends) for place, mask in masks.items())
    series = read_metrics(tmp_path / "metrics.csv")
    assert series["env_steps"] == ([0, 3, 4, 6, 9, 12, 15, 18, 19], [0, 0, 0, 14, 20, 26, 32, 38, 40])
    assert series["eval/return"][0] == [0, OFFLINE, OFFLINE + 15], "evaluated where the offline phase ends, too"
    begin = 0
    expected: dict[int, tuple[float, float]] = {}  # mean length and success of the episodes that ended since
    for update, end in {6: 7, 9: 10, 12: 13, 15: 16, 18: 19}.items():
        ended = [last - first + 1 for _, first, last in progress.episodes.tolist() if begin <= last < end]
        if ended:
            expected[update] = (float(np.mean(ended)), float(np.mean([length % 2 == 0 for length in ended])))
        begin = end
    for position, name in enumerate(("online/length", "online/success_rate")):
        assert dict(zip(*series[name], strict=True)) == pytest.approx(
            {update: each[position] for update, each in expected.items()}
        )
    assert all(0 <= share <= 1 for share in series["online/share_of_time"][1])


def test_episodes_end_at_a_time_limit_that_the_environment_lacks(tmp_path: Path) -> None:
    online = Online(steps=42, num_envs=2, env_id="tests.environments:Unlimited-v0", max_episode_steps=7)
    _, progress = collected(go(tmp_path, online))
    assert {last - first + 1 for _, first, last in progress.episodes.tolist()} == {7}
    with pytest.raises(EnvError, match=r"expected a time limit, found none.* set max_episode_steps where it is played"):
        go(tmp_path / "without", replace(online, max_episode_steps=None))


def test_first_steps_are_uniform_on_request_and_an_empty_buffer_leaves_the_dataset_out(tmp_path: Path) -> None:
    online = Online(steps=400, mode="empty", num_envs=4, start_steps=396, random_steps=396, env_id=SWING)
    buffer, _ = collected(go(tmp_path, online, offline=0))
    actions = np.concatenate([buffer.read("actions", lane, 0, 99) for lane in range(4)])
    assert np.histogram(actions, bins=4, range=(-1, 1))[0] == pytest.approx([99] * 4, abs=40)


@pytest.mark.filterwarnings("ignore:episodes in flight are dropped")
@pytest.mark.parametrize("fault", ["Error", pytest.param("NaN", marks=pytest.mark.slow)])
def test_broken_episodes_are_dropped_and_counted_and_a_limit_stops_the_run(fault: str, tmp_path: Path) -> None:
    env_id = f"tests.environments:Toy{fault}-v0"  # fails at the second step
    with pytest.warns(UserWarning, match="episodes in flight are dropped, training goes on"):
        trainer = go(tmp_path / "goes_on", Online(steps=60, env_id=env_id, max_broken_episodes=60))
    _, progress = collected(trainer)
    lengths = progress.episodes[:, 2] - progress.episodes[:, 1] + 1
    assert trainer.global_step == OFFLINE + 60
    assert set(lengths.tolist()) == {1}, "episodes that failed are not in the buffer"
    assert 2 * progress.broken + len(lengths) == pytest.approx(60, abs=1)
    with pytest.raises(EnvError, match=r"max_broken_episodes: expected at most 3 .* found 4"):
        go(tmp_path / "stops", Online(steps=60, env_id=env_id, max_broken_episodes=3))


def test_a_step_that_hangs_is_given_up(tmp_path: Path) -> None:
    online = Online(steps=30, env_id="tests.environments:ToyHang-v0", max_broken_episodes=0, timeout=0.2)
    with pytest.raises(EnvError, match=r"longer than timeout=0.2 s"):
        go(tmp_path, online)


@pytest.mark.slow  # processes of their own
def test_environments_in_processes_collect_the_same_and_may_die(tmp_path: Path) -> None:
    online = Online(steps=60, num_envs=2, env_id=SWING, parallel=True)
    assert differing(outcome(go(tmp_path / "same", online), tmp_path / "same"), uninterrupted()) == []
    dying = Online(steps=30, env_id="tests.environments:ToyDeath-v0", parallel=True, max_broken_episodes=0)
    with pytest.raises(EnvError, match="its process ended unexpectedly"):
        go(tmp_path / "dying", dying)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5, "num_envs": 2}, "online.steps: expected a multiple of online.num_envs=2, found 5"),
        ({"steps": -1}, "online.steps: expected at least 0, found -1"),
        ({"steps": 5, "start_steps": 5}, "online.start_steps: expected below online.steps=5, found 5"),
        ({"updates_per_env_step": 0.5}, "online.updates_per_env_step: expected a whole number of updates"),
        ({"updates_per_env_step": float("inf")}, "online.updates_per_env_step: expected a whole number of updates"),
        ({"mode": "retained"}, "online.mode: expected retain, balanced, empty, found retained"),
        ({"max_episode_steps": 0}, "online.max_episode_steps: expected at least 1, found 0"),
        ({"timeout": 0.0}, "online.timeout: expected above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Online(**settings)


@pytest.mark.parametrize(
    ("ratio", "envs", "updates"), [(0.29, 100, 29), (0.333333, 3, 1), (0.666667, 3, 2), (1.5, 2, 3)]
)
def test_ratios_that_binary_fractions_do_not_hold_make_whole_numbers_of_updates(
    ratio: float, envs: int, updates: int
) -> None:
    online = Online(steps=10**6 * envs, num_envs=envs, updates_per_env_step=ratio)
    assert (online.updates_per_round, online.updates) == (updates, 10**6 * updates)
    config = {f"online.{name}": str(getattr(online, name)) for name in ("steps", "num_envs", "updates_per_env_step")}
    assert Run("", Path(), config | {"trainer.max_steps": "5"}, "", None, {}).planned == 5 + online.updates


def test_what_does_not_fit_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"online.env_id: the dataset names no environment"):
        go(tmp_path, Online(steps=4))
    with pytest.raises(ValueError, match=r"data.updates_per_step: expected a divisor of the 4 updates of the offline"):
        go(tmp_path, TWO, data=OfflineDataModule(toy_dataset(), batch_size=16, updates_per_step=5))
    with pytest.raises(ValueError, match=r"data.release_windows"):
        OfflineDataModule(toy_dataset(), release_windows=True).go_online(Collector(TWO))
    with pytest.raises(EnvError, match="expected sizes"):
        go(tmp_path, Online(steps=4, env_id="tests.environments:Countdown-v0"))


def test_a_continued_run_keeps_its_phase(tmp_path: Path) -> None:
    trainer = go(tmp_path, TWO, EndsAt(10))
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    raw = trainer._checkpoint_connector.dump_checkpoint()
    other = OfflineDataModule(toy_dataset(), batch_size=16)
    other.go_online(Collector(Online(steps=60, num_envs=1, env_id=SWING)))
    with pytest.raises(ValueError, match=r"online.num_envs: 2 in the checkpoint, 1 now"):
        refuse_changes(tmp_path, raw, trainer.lightning_module, other)
    refuse_changes(tmp_path, raw, trainer.lightning_module, data)
    with pytest.raises(ValueError, match=r"expected 1 steps of each environment .* after 9 offline updates, found 3"):
        go(tmp_path, TWO, offline=9)
    longer = go(tmp_path, Online(steps=80, num_envs=2, env_id=SWING))
    assert longer.global_step == OFFLINE + 80


@pytest.mark.parametrize("name", ["rounds", "first", "chunks", "episodes"])
def test_a_forged_state_is_refused(name: str) -> None:
    start = Progress.start(2, 1, 1)
    state = Progress.start(2, 1, 1).state() | {"rounds": 5, "episodes": torch.tensor([[1, 0, 3]])}
    assert start.restored(state) is not None
    forged = {
        "rounds": 2,
        "first": torch.tensor([0, 7]),
        "chunks": torch.zeros(2),
        "episodes": torch.tensor([[2, 0, 3]]),
    }
    assert start.restored(state | {name: forged[name]}) is None
    assert start.restored({key: value for key, value in state.items() if key != name}) is None
