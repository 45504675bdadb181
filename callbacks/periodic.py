"""Observers that look at the model every N updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tql_lightning.callbacks.intervals import is_due, require_multiple
from tql_lightning.callbacks.observing import data_of, require_algorithm
from tql_lightning.system.full_disk import training_goes_on
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.sharding import gathered


class PeriodicObserver(Callback, ABC):
    """Calls `observe` on the first process before the first update, every N updates, and after the last one.

    Where it cannot write, for a full disk above all, a warning says so and training goes on.

    Args:
        every_n_updates: updates between two calls; a multiple of the data's ``updates_per_step``.

    Raises:
        ValueError: ``every_n_updates`` is below 1.
    """

    def __init__(self, every_n_updates: int) -> None:
        if every_n_updates < 1:
            raise ValueError(f"{type(self).__name__}.every_n_updates: expected at least 1, found {every_n_updates}")
        self.every_n_updates = every_n_updates

    @abstractmethod
    def observe(self, trainer: Trainer, model: Algorithm) -> None:
        """Looks at the model, in training mode and with its critic and policy whole, and leaves it as it is."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks interval, model and data before any training."""
        if stage == "fit":
            require_multiple(trainer, f"{type(self).__name__}.every_n_updates", self.every_n_updates)
            require_algorithm(self, pl_module)
            data_of(self, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the model as it was initialised, not when a run is resumed."""
        if trainer.global_step == 0:
            self._observe(trainer, require_algorithm(self, pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the interval and after the last update."""
        if is_due(trainer, self.every_n_updates):
            self._observe(trainer, require_algorithm(self, pl_module))

    def _observe(self, trainer: Trainer, model: Algorithm) -> None:
        with gathered(*model.trained_networks()):
            if trainer.is_global_zero:
                with training_goes_on(trainer.default_root_dir):
                    self.observe(trainer, model)
