"""Base class of observers that run every N updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tql_lightning.callbacks.background import ends_unobserved
from tql_lightning.callbacks.intervals import is_due, require_multiple
from tql_lightning.callbacks.observing import data_of, require_algorithm, require_packages
from tql_lightning.run.folder import writes_nothing
from tql_lightning.system.full_disk import training_goes_on
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.sharding import gathered
from tql_lightning.training.stock_callbacks import log_metrics


class PeriodicObserver(Callback, ABC):
    """Calls `observe` on the first process before the first update, every N updates, and after the last one.

    A failed write, as on a full disk, causes a warning, and training goes on.

    Args:
        every_n_updates: Updates between two calls, a multiple of the data's ``updates_per_step``.

    Raises:
        ValueError: ``every_n_updates`` is below 1.

    Examples:
        >>> class PrintUpdate(PeriodicObserver):
        ...     def observe(self, trainer, model):
        ...         print(trainer.global_step)
        >>> PrintUpdate(every_n_updates=100).every_n_updates
        100
    """

    needs: tuple[str, ...] = ()  # packages

    def __init__(self, every_n_updates: int) -> None:
        if every_n_updates < 1:
            raise ValueError(f"{type(self).__name__}.every_n_updates: expected at least 1, found {every_n_updates}")
        self.every_n_updates = every_n_updates

    @abstractmethod
    def observe(self, trainer: Trainer, model: Algorithm) -> Mapping[str, float] | None:
        """Observes the model, which is in training mode with gathered weights, and must not change it.

        Returns:
            Metrics to log by key; the class names them in ``logs``, so that other callbacks can monitor them.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks interval, model and data before any training."""
        if stage == "fit":
            require_packages(self, *self.needs)
            require_multiple(trainer, f"{type(self).__name__}.every_n_updates", self.every_n_updates)
            require_algorithm(self, pl_module)
            data_of(self, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Observes the initial weights; a continued run has observed them already."""
        if trainer.global_step == 0:
            self._observe(trainer, require_algorithm(self, pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Observes at the interval and after the last update."""
        if is_due(trainer, self.every_n_updates):
            self._observe(trainer, require_algorithm(self, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Observes a run that ends between two intervals."""
        if ends_unobserved(trainer, self.every_n_updates):
            self._observe(trainer, require_algorithm(self, pl_module))

    def _observe(self, trainer: Trainer, model: Algorithm) -> None:
        if writes_nothing(trainer):
            return
        metrics = None
        with gathered(*model.trained_networks()):
            if trainer.is_global_zero:
                with training_goes_on(trainer.default_root_dir):
                    metrics = self.observe(trainer, model)
        metrics = trainer.strategy.broadcast(metrics)
        if metrics:
            log_metrics(trainer, metrics, trainer.global_step)
