"""A run that is stopped at any update and continued is bit for bit the one that nothing interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
import warnings
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.marks import slow_after
from tests.toy import fit, toy_model
from tql_lightning.callbacks.attention_entropy import AttentionEntropyMonitor
from tql_lightning.callbacks.best_checkpoint import BestCheckpoint
from tql_lightning.callbacks.checkpointing import GracefulInterrupt, LastCheckpoint
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.data.counter_random import seed_generators
from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.loggers.tensorboard_logger import ContinuedTensorBoardLogger
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.sigma_reparam import SigmaReparam
from tql_lightning.run.checkpoint_io import WholeCheckpointIO, read_checkpoint
from tql_lightning.run.folder import evaluation_files, pending_files

UPDATES, CHUNK = 24, 5
SWING = "tests.environments:Swing-v0"


class SignalWithin(Callback):
    """Sends this process a signal within an update, once the target critic has moved and before the critic does."""

    def __init__(self, update: int | None, number: signal.Signals = signal.SIGTERM) -> None:
        self.update, self.number = update, number

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def strike(*_: Any) -> None:
            if trainer.global_step + 1 == self.update:
                os.kill(os.getpid(), self.number)

        trainer.optimizers[0].register_step_pre_hook(strike)


def train(folder: Path, stop: int | None, background: bool = False) -> dict[str, Any]:
    """Trains from the last checkpoint, if there is one, to a signal within the update ``stop``, or to the end."""
    # Dropout draws from torch's own generator, and sigma-Reparam's vectors move with every forward pass.
    critic = partial(TransformerCritic, hidden_dim=16, head_dim=8, dropout=0.1, weight_parametrisation=SigmaReparam)
    last = folder / "checkpoints" / "last.ckpt"
    best = BestCheckpoint(str(last.parent))
    callbacks = [
        GracefulInterrupt(),
        AttentionEntropyMonitor(),
        RolloutEvaluation(episodes=2, every_n_updates=10, env_id=SWING, background=background),
        LastCheckpoint(str(last.parent), every_n_updates=10),
        best,
        SignalWithin(stop),
    ]
    trainer = fit(
        folder,
        toy_model(critic=critic),
        UPDATES,
        callbacks,
        ckpt_path=last if last.exists() else None,
        updates_per_step=CHUNK,
        logger=[ContinuedCSVLogger(str(folder)), ContinuedTensorBoardLogger(str(folder))],
        log_every_n_steps=3,
        val_check_interval=2,
        plugins=WholeCheckpointIO(),
    )
    assert trainer.global_step == (stop or UPDATES)
    return {"weights": trainer.lightning_module.state_dict(), "best": best.state_dict()}


def rows(folder: Path) -> list[dict[str, str]]:
    """What metrics.csv holds, evaluations at the end: those in the background come when they come."""
    with (folder / "metrics.csv").open(newline="") as file:
        found = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    return sorted(found, key=lambda row: (any(name.startswith("eval/") for name in row), int(row["step"])))


def outcome(folder: Path, trained: dict[str, Any]) -> dict[str, Any]:
    """All that two runs are compared by, as text or numbers that are equal only bit for bit."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    curves = {
        name: sorted((event.step, event.value) for event in events.Scalars(name)) for name in events.Tags()["scalars"]
    }
    last, best = (read_checkpoint(folder / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    state = trained["best"]
    return {
        "weights": trained["weights"],
        "last weights": last["state_dict"],
        "optimizer": last["optimizer_states"],
        "schedule": last["lr_schedulers"],
        "best weights": best["state_dict"],
        "best update": best["global_step"],
        "best score": (state["best_model_score"], state["kth_value"], state["current_score"]),
        "best file": Path(state["best_model_path"]).relative_to(folder),
        "rows": rows(folder),
        "curves": curves,
        "evaluations": {update: json.loads(path.read_text()) for update, path in evaluation_files(folder).items()},
        "pending": pending_files(folder),
    }


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Names of what differs."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [name]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [each for key in one for each in differences(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [each for index, pair in pairs for each in differences(*pair, f"{name}/{index}")]
    return [] if one == other else [f"{name}: {one} and {other}"]


@cache
def uninterrupted() -> dict[str, Any]:
    with TemporaryDirectory() as name:
        return outcome(Path(name), train(Path(name), None))


STOPS = {
    "within chunks, twice within one": [1, 3, 4, 13],
    "at validation, evaluation and checkpoint": [10, 20],
    "right before and after them, at a chunk's end": [9, 11, 15],
    "at the last update": [24],
}


@pytest.mark.parametrize("stops", slow_after(2, list(STOPS.values())), ids=STOPS)
def test_a_run_stopped_anywhere_and_continued_is_the_uninterrupted_one(stops: list[int], tmp_path: Path) -> None:
    for stop in stops:
        train(tmp_path, stop)
    trained = train(tmp_path, None)
    assert differences(uninterrupted(), outcome(tmp_path, trained)) == []


@pytest.mark.slow  # three processes import torch
def test_so_it_is_with_evaluations_in_the_background(tmp_path: Path) -> None:
    for stop in (13, 24):
        train(tmp_path, stop, background=True)
    trained = train(tmp_path, None, background=True)
    assert differences(uninterrupted(), outcome(tmp_path, trained)) == []


def test_a_killed_run_does_what_it_logged_after_its_checkpoint_again_and_has_it_once(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    train(tmp_path, 12)
    as_it_was = checkpoint.read_bytes()
    train(tmp_path, 23)  # past the evaluation of update 20, which is the best so far
    checkpoint.write_bytes(as_it_was)
    assert max(int(row["step"]) for row in rows(tmp_path)) == 20
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(",,,0.12")  # a row that was being written
    trained = train(tmp_path, None)
    assert differences(uninterrupted(), outcome(tmp_path, trained)) == []


def test_a_validation_that_its_checkpoint_came_before_is_made_when_it_continues(tmp_path: Path) -> None:
    for part, stop in (("first", 12), ("second", None)):
        before = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=10, save_top_k=-1)
        logger = ContinuedCSVLogger(str(tmp_path / part))
        found = next(tmp_path.glob("step=10*"), None)
        callbacks = [GracefulInterrupt(), SignalWithin(stop), before]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Checkpoint directory")
            fit(tmp_path, toy_model(), 20, callbacks, found, logger=logger, log_every_n_steps=5, val_check_interval=2)
    validated = {part: [row for row in rows(tmp_path / part) if "val/td_loss" in row] for part in ("first", "second")}
    assert [row["step"] for row in validated["second"]] == ["10", "20"]
    assert validated["second"][0] == validated["first"][0]


def test_a_stop_brings_about_no_validation_however_late_its_signal_comes(tmp_path: Path) -> None:
    model = toy_model()
    decide = model.on_train_batch_end

    def decide_and_hear(*arguments: Any) -> None:
        decide(*arguments)
        if model.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    model.on_train_batch_end = decide_and_hear  # type: ignore[method-assign]
    logger = ContinuedCSVLogger(str(tmp_path))
    trainer = fit(tmp_path, model, 20, [GracefulInterrupt()], logger=logger, log_every_n_steps=5, val_check_interval=2)
    assert trainer.global_step == 5
    assert [row["step"] for row in rows(tmp_path)] == ["5"]


@pytest.fixture(scope="module")
def whole_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights after 12 updates that nothing interrupted."""
    model = toy_model()
    fit(tmp_path_factory.mktemp("whole"), model, 12)
    return model.state_dict()


def assert_continues(checkpoint: Path, folder: Path, whole: dict[str, torch.Tensor]) -> None:
    assert read_checkpoint(checkpoint)["global_step"] == 7
    model = toy_model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
        fit(folder, model, 12, ckpt_path=checkpoint)
    assert differences(whole, model.state_dict()) == []


def test_an_interrupt_that_is_raised_comes_after_both_steps_of_an_update(
    tmp_path: Path, whole_weights: dict[str, torch.Tensor]
) -> None:
    saving = ModelCheckpoint(tmp_path, "caught", save_on_exception=True)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background has not
    try:
        with pytest.raises(SystemExit):  # what Lightning makes of a KeyboardInterrupt
            fit(tmp_path, toy_model(), 12, [saving, SignalWithin(7, signal.SIGINT)])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert_continues(tmp_path / "caught.ckpt", tmp_path, whole_weights)


def test_a_handler_that_saves_finds_both_steps_done(tmp_path: Path, whole_weights: dict[str, torch.Tensor]) -> None:
    class SavingHandler(Callback):
        """Saves when a signal comes, as Lightning does where SLURM announces the end of a job."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            signal.signal(signal.SIGUSR1, lambda *_: trainer.save_checkpoint(tmp_path / "saved.ckpt"))

    before = signal.getsignal(signal.SIGUSR1)
    model = toy_model()
    try:
        fit(tmp_path, model, 12, [SavingHandler(), SignalWithin(7, signal.SIGUSR1)])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert differences(whole_weights, model.state_dict()) == []
    assert_continues(tmp_path / "saved.ckpt", tmp_path, whole_weights)


def test_torchs_generators_are_seeded_by_seed_update_and_process() -> None:
    drawn = set()
    with torch.random.fork_rng():
        for arguments in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)):
            for _ in range(2):
                seed_generators(torch.device("cpu"), *arguments)
                drawn.add(float(torch.rand(())))
    assert len(drawn) == 5
