"""Runs with an online phase; ``python -m tests.online.runs FOLDER WHAT`` is one in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from tests import environments  # noqa: F401  (registers)
from tests.toy import toy_dataset, toy_model
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.online.collector import Collector
from tql_lightning.online.settings import Online
from tql_lightning.run.checkpoint_io import WholeCheckpointIO
from tql_lightning.testing.ports import quiet_port
from tql_lightning.training.algorithm import Algorithm

SWING = "tests.environments:Swing-v0"  # Pendulum with episodes of 20 steps
OFFLINE = 4


class EndsAt(Callback):
    """Kills this process, or stops the trainer, after an update."""

    def __init__(self, update: int | None, kills: bool = False) -> None:
        self.update, self.kills = update, kills

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.update:
            if self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            trainer.should_stop = True


def go(
    folder: Path,
    online: Online,
    *callbacks: Callback,
    model: Algorithm | None = None,
    offline: int = OFFLINE,
    data: OfflineDataModule | None = None,
    chunk: int = 1,
    **settings: Any,
) -> Trainer:
    """Trains offline and then online, from the last checkpoint if there is one; returns the trainer."""
    last = folder / "checkpoints" / "last.ckpt"
    # Dropout would show if the policy that collects were left in training mode.
    model = model or toy_model(action_chunk=chunk)
    data = data or OfflineDataModule(toy_dataset(), batch_size=16, action_chunk=chunk)
    data.go_online(Collector(online))
    defaults: dict[str, Any] = {
        "logger": ContinuedCSVLogger(str(folder)),
        "log_every_n_steps": 3,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "accelerator": "cpu",
        "devices": 1,
        "plugins": WholeCheckpointIO(),
    }
    trainer = Trainer(
        max_steps=offline + online.updates,
        max_epochs=-1,
        callbacks=[LastCheckpoint(str(last.parent), every_n_updates=5), *callbacks],
        default_root_dir=folder,
        **(defaults | settings),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
        trainer.fit(model, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    return trainer


def kill(folder: Path) -> None:
    """A run that kills itself three updates after its last checkpoint."""
    go(folder, Online(steps=60, num_envs=2, env_id=SWING), EndsAt(48, kills=True))


def as_one_of_two(folder: Path) -> None:
    """A run of two processes, stopped and continued, with an environment each."""
    online = Online(steps=60, num_envs=2, env_id=SWING)
    for stop in (31, None):
        go(folder, online, EndsAt(stop), model=toy_model().double(), devices=2, precision="64-true")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    if sys.argv[2] == "kill":
        kill(folder)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(quiet_port()), "NODE_RANK": "0"}
    child = os.fork()  # before any gradient: torch's threads do not live on in a child
    os.environ["LOCAL_RANK"] = "0" if child else "1"
    as_one_of_two(folder)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
