"""A progress bar that counts updates."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

SECONDS_IN_A_FILE = 10.0  # between two lines of a bar that no terminal shows


class UpdateProgressBar(TQDMProgressBar):
    """Shows updates per second, time left, and the last evaluation's success rate or return.

    Where the output is not a terminal but a file, it writes a line every 10 seconds at most.

    Args:
        refresh_rate: Trainer steps between redraws; 0 for no bar.

    Examples:
        >>> UpdateProgressBar(refresh_rate=10).refresh_rate
        10
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def init_train_tqdm(self) -> Tqdm:
        """Makes Lightning's bar with "updates" as the unit and a rate smoothed over recent steps."""
        bar = super().init_train_tqdm()
        bar.unit = " updates"
        bar.smoothing = 0.1
        if not sys.stdout.isatty():
            bar.mininterval = SECONDS_IN_A_FILE
        return bar

    def on_train_start(self, *_: Any) -> None:
        """Starts the bar at the update the run starts or continues from."""
        super().on_train_start()
        trainer, bar = self.trainer, self.train_progress_bar
        bar.reset(total=trainer.max_steps if trainer.max_steps > 0 else None)
        bar.initial = bar.n = bar.last_print_n = trainer.global_step
        bar.set_description("Training")

    def on_train_epoch_start(self, *_: Any) -> None:
        """Does nothing, where Lightning would reset the bar: a resumed run continues within its only epoch."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar to the current update."""
        if self.is_enabled and ((batch_idx + 1) % self.refresh_rate == 0 or trainer.global_step == trainer.max_steps):
            bar = self.train_progress_bar
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            bar.update(trainer.global_step - bar.n)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Returns the last success rate, or without one the last return."""
        for name in ("success_rate", "return"):
            value = trainer.callback_metrics.get(f"eval/{name}")
            if value is not None:
                return {name: f"{float(value):.3g}"}
        return {}
