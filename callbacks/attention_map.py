"""Draws where the critic attends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tql_lightning.callbacks.intervals import is_due, require_multiple
from tql_lightning.callbacks.observing import dataset_of, evaluation_mode, fixed_transitions, require_tql
from tql_lightning.media import save_figure
from tql_lightning.nn.attention_weights import attention_log_weights
from tql_lightning.pictures import attention_map_figure
from tql_lightning.run_folder import ATTENTION_MAP, picture_file


class AttentionMap(Callback):
    """Draws each layer's attention map, the mean over heads and a fixed batch of the dataset's transitions.

    Rows are queries and sum to 1; axes are tokens: [VALUE], observation, action. Pictures go to
    ``pictures/attention_map/`` in the run's folder and to the loggers. A critic without attention has none.

    Args:
        every_n_updates: updates between two pictures; a multiple of the data's ``updates_per_step``. There is one
            before the first update and one after the last, too.
        transitions: in the batch.
    """

    def __init__(self, every_n_updates: int = 100_000, transitions: int = 64) -> None:
        for name, value in (("every_n_updates", every_n_updates), ("transitions", transitions)):
            if value < 1:
                raise ValueError(f"AttentionMap.{name}: expected at least 1, found {value}")
        self.every_n_updates = every_n_updates
        self.transitions = transitions

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks interval, model and data before any training."""
        if stage == "fit":
            require_multiple(trainer, "AttentionMap.every_n_updates", self.every_n_updates)
            require_tql(self, pl_module)
            dataset_of(self, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the critic as it was initialised."""
        if trainer.global_step == 0:
            self._draw(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws at the interval and after the last update."""
        if is_due(trainer, self.every_n_updates):
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        model = require_tql(self, pl_module)
        with evaluation_mode(model.critic):
            pairs = fixed_transitions(dataset_of(self, trainer), self.transitions, model)
            logarithms = attention_log_weights(model.critic, *pairs)
        if logarithms:
            maps = [layer.exp().mean(dim=(0, 1)).cpu().numpy() for layer in logarithms]
            figure = attention_map_figure(maps, model.observation_dim, trainer.global_step)
            path = picture_file(Path(trainer.default_root_dir), ATTENTION_MAP, trainer.global_step)
            save_figure(figure, path, trainer.loggers, ATTENTION_MAP, trainer.global_step)
