"""A progress bar that counts updates."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class UpdateProgressBar(TQDMProgressBar):
    """Lightning's bar in updates: updates per second, time left, last evaluation's success rate or return.

    Args:
        refresh_rate: steps of the trainer between redraws; 0 for no bar.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def init_train_tqdm(self) -> Tqdm:
        """Lightning's training bar with another unit; its rate follows the last seconds."""
        bar = super().init_train_tqdm()
        bar.unit = " updates"
        bar.smoothing = 0.1
        return bar

    def on_train_start(self, *_: Any) -> None:
        """Starts the bar at the update the run starts or continues from."""
        super().on_train_start()
        trainer, bar = self.trainer, self.train_progress_bar
        bar.reset(total=trainer.max_steps if trainer.max_steps > 0 else None)
        bar.initial = bar.n = bar.last_print_n = trainer.global_step
        bar.set_description("Training")

    def on_train_epoch_start(self, *_: Any) -> None:
        """Keeps Lightning's from starting over: a resumed run goes on in the middle of its only epoch."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar to the trainer's update."""
        if self.is_enabled and ((batch_idx + 1) % self.refresh_rate == 0 or trainer.global_step == trainer.max_steps):
            bar = self.train_progress_bar
            bar.update(trainer.global_step - bar.n)
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The last success rate, or where there is none the last return."""
        for name in ("success_rate", "return"):
            value = trainer.callback_metrics.get(f"eval/{name}")
            if value is not None:
                return {name: f"{float(value):.3g}"}
        return {}
