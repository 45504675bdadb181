"""Runs of a few updates on the CPU, and the tensors that they change."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.online.collector import Collector
from tql_lightning.online.settings import Online
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.optimisation import NO_DECAY

BATCH_SIZE = 16


class StopAt(Callback):
    """Stops a run after an update."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Asks the trainer to stop."""
        trainer.should_stop = trainer.global_step >= self.update


def train_briefly(
    folder: Path,
    model: Algorithm,
    updates: int,
    dataset: TransitionDataset,
    data: Mapping[str, Any],
    *,
    batch_size: int = BATCH_SIZE,
    callbacks: list[Callback] | None = None,
    stop_at: int | None = None,
    ckpt_path: Path | None = None,
    online: Online | None = None,
    **settings: Any,
) -> Trainer:
    """Trains a model on the CPU.

    Args:
        folder: Folder for what is written.
        model: Algorithm to train.
        updates: Updates of the whole run.
        dataset: Transitions.
        data: Further settings of `OfflineDataModule`.
        batch_size: Transitions of an update.
        callbacks: Callbacks of the trainer.
        stop_at: Update after which the run stops; None for the last.
        ckpt_path: Checkpoint to continue from.
        online: Online phase after these updates; None for none.
        **settings: Further settings of the trainer.
    """
    defaults: dict[str, Any] = {"logger": False, "devices": 1, "log_every_n_steps": updates}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # advice about loaders and logging
        trainer = Trainer(
            max_steps=updates + (0 if online is None else online.updates),
            max_epochs=-1,
            accelerator="cpu",
            default_root_dir=folder,
            num_sanity_val_steps=0,
            callbacks=[*(callbacks or []), *([] if stop_at is None else [StopAt(stop_at)])],
            **(defaults | quiet | settings),
        )
        of_model: dict[str, Any] = {"batch_size": batch_size, "discount": getattr(model, "discount", 0.99)}
        datamodule = OfflineDataModule(dataset, **(of_model | dict(data)))
        if online is not None:
            datamodule.go_online(Collector(online))
        trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def trained_state(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor that training changes: parameters, buffers, and the optimizer's state by group and index."""
    assert trainer.model is not None
    state = {name: value.detach().clone() for name, value in trainer.lightning_module.state_dict().items()}
    (optimizer,) = trainer.optimizers
    for group in optimizer.param_groups:
        for index, parameter in enumerate(group["params"]):
            for name, value in optimizer.state.get(parameter, {}).items():
                key = f"optimizer/{group['name'].removesuffix(NO_DECAY)}/{index}/{name}"
                state[key] = torch.as_tensor(value).detach().clone()
    return state
