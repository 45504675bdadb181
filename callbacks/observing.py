"""What observers share: looking at a model without a trace, and at the same transitions every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from tql_lightning.algorithms.tql import TQL
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.storage import store
from tql_lightning.data.windows import Windows


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, so that no dropout draws and no buffer moves; afterwards each as it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def require_tql(callback: Callback, pl_module: LightningModule) -> TQL:
    """The model as the TQL that it has to be.

    Raises:
        ValueError: it is another.
    """
    if not isinstance(pl_module, TQL):
        raise ValueError(f"{type(callback).__name__}: expected a TQL model, found {type(pl_module).__name__}")
    return pl_module


def data_of(callback: Callback, trainer: Trainer) -> OfflineDataModule:
    """The data that are trained on.

    Raises:
        ValueError: the trainer has no OfflineDataModule.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, OfflineDataModule):
        raise ValueError(f"{type(callback).__name__}: expected to train on an OfflineDataModule, found none")
    return data


def environment_of(callback: Callback, trainer: Trainer, env_id: str | None) -> str:
    """The environment that episodes are played in: the one given, else the one that the dataset names.

    Raises:
        ValueError: there is neither.
    """
    found = env_id or getattr(getattr(trainer, "datamodule", None), "env_id", None)
    if found is None:
        raise ValueError(
            f"{type(callback).__name__}.env_id: the dataset names no environment; give its Gymnasium id, or leave "
            "this callback out"
        )
    return str(found)


def fixed_transitions(data: OfflineDataModule, size: int, model: TQL) -> tuple[Tensor, Tensor]:
    """Evenly spaced rows of what is trained on, the same at every call, as the model computes.

    Args:
        data: to take them from.
        size: how many at most.
        model: whose device and floating type they get.

    Returns:
        Observations (size, n_s) and actions (size, n_a), of action chunks h actions in a row.
    """
    windows = Windows(store(data.dataset, "cpu"), data.dataset, data.span)
    batch = windows.batch(torch.linspace(0, len(windows) - 1, min(size, len(windows))).long())
    dtype = next(model.critic.parameters()).dtype
    return batch.observations.to(model.device, dtype), batch.actions.to(model.device, dtype)
