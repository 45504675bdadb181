"""Draws a run's curves when it ends."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from tql_lightning.callbacks.observing import require_packages
from tql_lightning.run.folder import writes_nothing
from tql_lightning.system.full_disk import training_goes_on


class TrainingPlots(Callback):
    """Writes return.png, attention_entropy.png and losses.png beside the CSV logger's metrics.csv.

    Examples:
        >>> from tql_lightning.callbacks import default_callbacks
        >>> any(isinstance(callback, TrainingPlots) for callback in default_callbacks("runs/mine"))
        True
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that a CSVLogger records the curves."""
        if stage != "fit" or writes_nothing(trainer):
            return
        require_packages(self, "matplotlib")
        if not any(isinstance(logger, CSVLogger) for logger in trainer.loggers):
            raise ValueError("TrainingPlots: expected a CSVLogger in trainer.logger, found none; add one")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws on the first process."""
        from tql_lightning.report.plots import plot_run

        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and trainer.is_global_zero:
                logger.save()
                with training_goes_on(logger.log_dir):
                    plot_run(Path(logger.log_dir))
