"""A run that is stopped at any update and continued is bit for bit the one that nothing interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.toy import fit, toy_model
from tql_lightning.callbacks.attention_entropy import AttentionEntropyMonitor
from tql_lightning.callbacks.best_checkpoint import BestCheckpoint
from tql_lightning.callbacks.checkpointing import GracefulInterrupt, LastCheckpoint
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.checkpoint_io import WholeCheckpointIO, read_checkpoint
from tql_lightning.loggers import ContinuedCSVLogger, ContinuedTensorBoardLogger
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.sigma_reparam import SigmaReparam
from tql_lightning.run_folder import evaluation_files, pending_files

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


def train(folder: Path, stop: int | None, background: bool, updates: int = UPDATES) -> dict[str, Any]:
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
        updates,
        callbacks,
        ckpt_path=last if last.exists() else None,
        updates_per_step=CHUNK,
        logger=[ContinuedCSVLogger(str(folder)), ContinuedTensorBoardLogger(str(folder))],
        log_every_n_steps=3,
        val_check_interval=2,
        plugins=WholeCheckpointIO(),
    )
    assert trainer.global_step == (stop or updates)
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
def uninterrupted(background: bool) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        return outcome(Path(name), train(Path(name), None, background))


STOPS = {
    "at the first update": [1],
    "within a chunk": [4],
    "within several chunks": [3, 4, 12, 13, 23],
    "at a chunk's end": [5, 15],
    "at validation, evaluation and checkpoint": [10, 20],
    "right before and after them": [9, 11, 19, 21],
    "at the last update": [24],
}


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
def test_a_run_stopped_anywhere_and_continued_is_the_uninterrupted_one(stops: list[int], tmp_path: Path) -> None:
    for stop in stops:
        train(tmp_path, stop, background=False)
    trained = train(tmp_path, None, background=False)
    assert differences(uninterrupted(False), outcome(tmp_path, trained)) == []
