"""What observers share: looking at a model without a trace, and at the same transitions every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.storage import store
from tql_lightning.data.windows import Windows
from tql_lightning.nn.critic import Critic
from tql_lightning.training.algorithm import Algorithm


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


def require_algorithm(callback: Callback, pl_module: LightningModule) -> Algorithm:
    """The model as an `Algorithm`.

    Raises:
        ValueError: It is another LightningModule.
    """
    if not isinstance(pl_module, Algorithm):
        raise ValueError(
            f"{type(callback).__name__}: expected a subclass of tql_lightning.Algorithm, found "
            f"{type(pl_module).__name__}; leave this callback out"
        )
    return pl_module


def require_critic(callback: Callback, pl_module: LightningModule) -> Critic:
    """The critic Q(s, a) of an algorithm.

    Raises:
        ValueError: It has none.
    """
    critic = getattr(require_algorithm(callback, pl_module), "critic", None)
    if not isinstance(critic, Critic):
        raise ValueError(
            f"{type(callback).__name__}: expected an algorithm with a critic, found {type(pl_module).__name__}, "
            "which has none; leave this callback out"
        )
    return critic


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


def fixed_transitions(data: OfflineDataModule, size: int, model: LightningModule) -> tuple[Tensor, Tensor]:
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
    dtype = next(model.parameters()).dtype
    return batch.observations.to(model.device, dtype), batch.actions.to(model.device, dtype)
