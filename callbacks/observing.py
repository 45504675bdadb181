"""What observers share: looking at a model without a trace, and at the same transitions every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.tql import TQL


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


def dataset_of(callback: Callback, trainer: Trainer) -> TransitionDataset:
    """The dataset that is trained on.

    Raises:
        ValueError: the trainer's datamodule has none.
    """
    dataset = getattr(getattr(trainer, "datamodule", None), "dataset", None)
    if not isinstance(dataset, TransitionDataset):
        raise ValueError(f"{type(callback).__name__}: expected to train on an OfflineDataModule, found none")
    return dataset


def fixed_transitions(dataset: TransitionDataset, size: int, model: TQL) -> tuple[Tensor, Tensor]:
    """Evenly spaced transitions, the same at every call, as the model computes.

    Args:
        dataset: to take them from.
        size: how many at most.
        model: whose device and floating type they get.

    Returns:
        Observations (size, n_s) and actions (size, n_a).
    """
    rows = torch.linspace(0, len(dataset) - 1, min(size, len(dataset))).long().numpy()
    dtype = next(model.critic.parameters()).dtype
    observations = torch.as_tensor(dataset.observations[rows]).to(model.device, dtype)
    return observations, torch.as_tensor(dataset.actions[rows]).to(model.device, dtype)
