"""Callbacks that contracts train with: one that looks at gradients, and some that must leave no trace."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from tql_lightning.batch import at_update
from tql_lightning.callbacks.attention_entropy import AttentionEntropyMonitor
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.callbacks.observing import evaluation_mode, require_algorithm
from tql_lightning.callbacks.throughput import Throughput


class Gradients(Callback):
    """Collects the parameters that have had a gradient other than zero.

    Attributes:
        nonzero: Their names.
    """

    def __init__(self) -> None:
        self.nonzero: set[str] = set()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Looks at every parameter."""
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None and bool(parameter.grad.any()):
                self.nonzero.add(name)


class Onlooker(Callback):
    """After every update acts, takes the losses and draws random numbers."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the minibatch that was just trained on."""
        model = require_algorithm(self, pl_module)
        minibatch, noise = (at_update(fields, 0) for fields in batch)
        with evaluation_mode(model), torch.no_grad():
            actor = model.actor()
            actor.act(minibatch.observations, torch.randn(len(minibatch.observations), *actor.noise_shape))
            model.losses(minibatch, noise, model.current_inputs())
        np.random.rand()  # noqa: NPY002  (the global generator is the point)
        random.random()


def observers(folder: Path) -> list[Callback]:
    """Observers of any algorithm that need neither environment nor critic."""
    return [Onlooker(), LastCheckpoint(str(folder / "observed"), 2), AttentionEntropyMonitor(), Throughput()]
