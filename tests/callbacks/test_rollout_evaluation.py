"""Evaluation while training."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from tests import environments  # noqa: F401  (registers)
from tests.callbacks.test_observers import Watch
from tests.command_line import PATIENCE
from tests.toy import fit, toy_model
from tql_lightning.callbacks.best_checkpoint import BestCheckpoint
from tql_lightning.callbacks.checkpointing import GracefulInterrupt, LastCheckpoint
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.data.counter_random import seed_generators
from tql_lightning.evaluation.background import BackgroundEvaluator, EvaluationJob
from tql_lightning.evaluation.rollout import rollout
from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.run.folder import evaluation_files, pending_files
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.testing.ports import quiet_port

TOY = "tests.environments:Toy-v0"
SWING = "tests.environments:Swing-v0"


def test_it_evaluates_before_at_every_interval_and_after_the_last_update(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    callback = RolloutEvaluation(episodes=3, every_n_updates=5)
    model = toy_model()
    trainer = fit(tmp_path, model, updates=12, callbacks=[callback], logger=logger, env_id=SWING)
    logger.save()
    updates, returns = read_metrics(tmp_path / "metrics.csv")["eval/return"]
    assert updates == [0, 5, 10, 12]
    expected = rollout(model.eval().actor(), SWING, 3, seed=0).summary()["return"]
    assert returns[-1] == pytest.approx(expected)
    assert float(trainer.callback_metrics["eval/return"]) == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_can_follow_the_best_return(tmp_path: Path) -> None:
    evaluation = RolloutEvaluation(episodes=2, every_n_updates=5, env_id=SWING)
    best = ModelCheckpoint(
        dirpath=tmp_path / "best",
        filename="best",
        monitor="eval/return",
        mode="max",
        every_n_train_steps=5,
        enable_version_counter=False,
    )
    fit(tmp_path, toy_model(), updates=10, callbacks=[evaluation, best])
    assert Path(best.best_model_path).name == "best.ckpt"
    assert best.best_model_score is not None


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_it_evaluates_in_every_precision(precision: Any, tmp_path: Path) -> None:
    callback = RolloutEvaluation(episodes=1, every_n_updates=5, env_id=SWING)
    fit(tmp_path, toy_model(), updates=5, callbacks=[callback], precision=precision)
    assert callback.result is not None
    assert callback.result.lengths.tolist() == [20]


@pytest.mark.parametrize(
    ("fault", "message"),
    [("NaN", "found NaN, infinity"), ("Error", "the simulation fell apart"), ("Hang", "longer than timeout=0.5 s")],
)
def test_an_environment_that_fails_ends_that_evaluation_and_is_counted(
    fault: str, message: str, tmp_path: Path
) -> None:
    timeout = 0.5 if fault == "Hang" else PATIENCE  # else a step that waits for a core counts as hung
    callback = RolloutEvaluation(2, 5, env_id=f"tests.environments:Toy{fault}-v0", timeout=timeout)
    logger = ContinuedCSVLogger(str(tmp_path))
    with pytest.warns(UserWarning, match=message) as warned:
        trainer = fit(tmp_path, toy_model(), updates=5, callbacks=[callback], logger=logger)
    assert trainer.global_step == 5
    assert sum("evaluation at update" in str(warning.message) for warning in warned) == 2
    series = read_metrics(tmp_path / "metrics.csv")
    assert series["eval/failures"] == ([0, 5], [1.0, 2.0])
    assert "eval/return" not in series
    assert evaluation_files(tmp_path) == {}


def test_an_evaluation_that_failed_is_not_made_again_when_the_run_continues(tmp_path: Path) -> None:
    last = LastCheckpoint(str(tmp_path), every_n_updates=5)
    for updates in (5, 10):
        callback = RolloutEvaluation(2, 5, env_id="tests.environments:ToyNaN-v0")
        continued = tmp_path / "last.ckpt" if updates > 5 else None
        with pytest.warns(UserWarning, match="found NaN, infinity"):
            fit(tmp_path, toy_model(), updates, [callback, last], ckpt_path=continued)
    assert callback.failures == 3  # at updates 0, 5 and 10


class SignalDuringEvaluation(Callback):
    """Sends this process a signal once an evaluation of an update is under way; others are not made."""

    def __init__(self, evaluation: RolloutEvaluation, update: int) -> None:
        self.play, self.update = evaluation._play, update
        evaluation._play = self.interrupted  # type: ignore[method-assign]

    def interrupted(self, trainer: Any, pl_module: Any) -> Any:
        if trainer.global_step != self.update:
            return None
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        return self.play(trainer, pl_module)


def test_a_signal_ends_an_evaluation_which_the_continued_run_plays_again(tmp_path: Path) -> None:
    previous = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    evaluation = RolloutEvaluation(episodes=5_000, every_n_updates=5, env_id=SWING, num_envs=50)
    last = LastCheckpoint(str(tmp_path), every_n_updates=5)
    callbacks = [GracefulInterrupt(), evaluation, SignalDuringEvaluation(evaluation, 5), last]
    try:
        stopped = fit(tmp_path, toy_model(), 10, callbacks)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert stopped.global_step == 5
    assert evaluation_files(tmp_path) == {}
    again = RolloutEvaluation(episodes=1, every_n_updates=5, env_id=TOY)
    fit(tmp_path, toy_model(), 10, [again, last], ckpt_path=tmp_path / "last.ckpt")
    assert list(evaluation_files(tmp_path)) == [5, 10]


def interrupt_children(*_: Any) -> None:
    """What a terminal does at Ctrl-C, and a cluster to all processes of a job that it ends."""
    for process in multiprocessing.active_children():
        os.kill(process.ident or 0, signal.SIGINT)
        os.kill(process.ident or 0, signal.SIGTERM)


@pytest.mark.slow
def test_in_the_background_it_logs_the_same_at_the_same_updates_also_after_a_kill(tmp_path: Path) -> None:
    folders = tmp_path / "blocking", tmp_path / "background"
    bests = [BestCheckpoint(str(folder / "checkpoints")) for folder in folders]
    settings: dict[str, Any] = {"log_every_n_steps": 5, "updates_per_step": 5}
    blocking = RolloutEvaluation(3, 10, env_id=SWING)
    models, watch = (toy_model(), toy_model()), Watch()
    fit(folders[0], models[0], 20, [blocking, bests[0]], logger=ContinuedCSVLogger(str(folders[0])), **settings)

    last, killed = (
        LastCheckpoint(str(folders[1]), every_n_updates=5),
        RolloutEvaluation(3, 10, env_id=TOY, background=True),
    )
    killed._submit = lambda *_: None  # type: ignore[method-assign]  # as if the process ended before any was played
    fit(folders[1], toy_model(), 10, [killed, bests[1], last], logger=ContinuedCSVLogger(str(folders[1])), **settings)
    assert list(pending_files(folders[1])) == [0, 10]
    background = RolloutEvaluation(3, 10, env_id=SWING, background=True)
    background.on_train_batch_start = interrupt_children  # type: ignore[method-assign]  # its process still imports
    settings |= {"logger": ContinuedCSVLogger(str(folders[1])), "ckpt_path": folders[1] / "last.ckpt"}
    fit(folders[1], models[1], 20, [background, bests[1], last, watch], **settings)
    assert not (folders[1] / "evaluations" / "pending").exists()
    found_state = models[1].state_dict()
    assert all(torch.equal(value, found_state[name]) for name, value in models[0].state_dict().items())
    assert len(watch.modes) == 2
    assert watch.modes[0] == watch.modes[1]
    with torch.random.fork_rng():
        seed_generators(torch.device("cpu"), seed=0, update=14, rank=0)  # of the last update before; nothing drew since
        assert torch.equal(watch.states[1], torch.get_rng_state())

    expected, found = (
        {name: rows for name, rows in read_metrics(folder / "metrics.csv").items() if name.startswith("eval/")}
        for folder in folders
    )
    assert found == expected
    assert found["eval/return"][0] == [0, 10, 20]
    for one, other in zip(*(evaluation_files(folder).values() for folder in folders), strict=True):
        assert json.loads(one.read_text()) == json.loads(other.read_text())

    kept, late = (torch.load(best.best_model_path, weights_only=True) for best in bests)
    assert kept["global_step"] == late["global_step"]
    assert all(torch.equal(value, late["state_dict"][name]) for name, value in kept["state_dict"].items())
    assert float(bests[1].best_model_score or 0) == pytest.approx(max(found["eval/return"][1][1:]))


@pytest.mark.slow  # two processes import torch
def test_a_process_that_dies_costs_its_own_evaluation_and_another_takes_over(tmp_path: Path) -> None:
    snapshot = tmp_path / "last.ckpt"
    fit(tmp_path, toy_model(), 5, [LastCheckpoint(str(tmp_path), every_n_updates=5)])
    evaluator = BackgroundEvaluator(timeout=PATIENCE)
    for update, env_id in enumerate(("tests.environments:ToyDeath-v0", TOY)):
        evaluator.submit(EvaluationJob(update, str(snapshot), env_id, 2, 0, 2, False, None))
    outcomes = []
    while evaluator.pending:
        outcomes += [outcome for outcome in [evaluator.next_outcome(1.0)] if outcome is not None]
    evaluator.close()
    died, lived = outcomes
    assert died.result is None
    assert "ended unexpectedly (exit code 3)" in str(died.error)
    assert lived.result is not None
    assert lived.result.successes is not None
    assert evaluator.next_outcome() is None


@pytest.mark.slow
def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    callback = RolloutEvaluation(2, 5, env_id="tests.environments:ToyHang-v0", timeout=0.5, background=True)
    with pytest.warns(UserWarning, match=r"longer than timeout=0.5 s"):
        fit(tmp_path, toy_model(), updates=5, callbacks=[callback])
    assert callback.failures == 2


def test_a_checkpoint_that_would_keep_other_weights_than_were_evaluated_is_refused(tmp_path: Path) -> None:
    callbacks = [
        RolloutEvaluation(2, 5, env_id=TOY, background=True),
        ModelCheckpoint(dirpath=tmp_path, monitor="eval/return", every_n_train_steps=5),
    ]
    with pytest.raises(ValueError, match=r"use tql_lightning.callbacks.best_checkpoint.BestCheckpoint"):
        fit(tmp_path, toy_model(), 5, callbacks)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"episodes": 0}, r"RolloutEvaluation.episodes: expected at least 1, found 0"),
    ({"timeout": 0.0}, r"RolloutEvaluation.timeout: expected above 0"),
    ({"every_n_updates": 0}, r"RolloutEvaluation.every_n_updates"),
    ({"every_n_updates": 7}, r"expected a multiple of data.updates_per_step=5, found 7"),
    ({}, r"the dataset names no environment"),
    ({"env_id": "tests.environments:Countdown-v0"}, r"expected sizes .* found .*\(2,\)"),
    ({"env_id": "Pendulm-v1"}, r"did you mean"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_what_cannot_be_evaluated_is_refused_before_training(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = toy_model()
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, model, updates=5, callbacks=[RolloutEvaluation(**({"every_n_updates": 5} | settings))])


TWO_PROCESSES = """
import sys
from contextlib import nullcontext
from pathlib import Path
from tests.toy import fit, toy_model
from tql_lightning.callbacks.best_checkpoint import BestCheckpoint
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation

if __name__ == "__main__":
    folder, env_id, mode, processes = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    evaluation = RolloutEvaluation(3, 5, env_id=env_id, background=mode == "background")
    callbacks = [evaluation, BestCheckpoint(str(folder))]
    fit(folder, toy_model().double(), 10, callbacks, strategy="ddp" if processes > 1 else "auto", devices=processes,
        precision="64-true", log_every_n_steps=5, enable_checkpointing=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blocking", "background"])
def test_two_processes_share_the_episodes_and_find_what_one_finds(mode: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MASTER_PORT": str(quiet_port())}
    records = []
    for processes in ("1", "2"):
        folder = tmp_path / processes
        command = [sys.executable, str(script), str(folder), TOY, mode, processes]
        finished = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert finished.returncode == 0, finished.stderr
        assert (folder / "best.ckpt").is_file()
        assert pending_files(folder) == {}
        records.append({update: json.loads(path.read_text()) for update, path in evaluation_files(folder).items()})
    assert list(records[0]) == [0, 5, 10]
    assert records[0] == records[1]


@pytest.mark.slow
def test_a_failure_in_one_of_two_processes_is_known_to_both(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MASTER_PORT": str(quiet_port())}
    command = [sys.executable, str(script), str(tmp_path / "run"), "tests.environments:ToyNaN-v0", "blocking", "2"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("failed, training goes on") == 3
