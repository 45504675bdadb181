"""Saves the weights from before a diverged update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tql_lightning.run.checkpoint_io import write_checkpoint
from tql_lightning.run.folder import before_divergence_file, writes_nothing
from tql_lightning.training.divergence import TrainingDivergedError
from tql_lightning.training.hyperparameters import loadable
from tql_lightning.training.sharding import whole


class BeforeDivergence(Callback):
    """Writes ``divergence/before_update_<N>.ckpt`` when training diverges: the weights before the last trainer step.

    With ``--config replay`` a trainer step is one update, so that these are the weights that update N turned into NaN.
    Each trainer step copies all weights once, on their device. The first process writes them whole, even if sharded.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[BeforeDivergence()], logger=False, enable_checkpointing=False)
        >>> any(isinstance(callback, BeforeDivergence) for callback in trainer.callbacks)
        True
    """

    def __init__(self) -> None:
        self._update = 0
        self._weights: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Copies the weights."""
        self._update = trainer.global_step
        for name, value in pl_module.state_dict().items():
            if name in self._weights:
                self._weights[name].copy_(value)
            else:
                self._weights[name] = value.clone()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the copied weights as a checkpoint without optimizer state, from which no run can continue."""
        if not isinstance(exception, TrainingDivergedError) or not self._weights:
            return
        weights = {name: whole(value).cpu() for name, value in self._weights.items()}  # all processes raise together
        if not trainer.is_global_zero or writes_nothing(trainer):
            return
        checkpoint = {
            "state_dict": weights,
            "global_step": self._update,
            "pytorch-lightning_version": lightning.__version__,
            LightningModule.CHECKPOINT_HYPER_PARAMS_KEY: loadable(dict(pl_module.hparams), type(pl_module)),
        }
        write_checkpoint(checkpoint, before_divergence_file(Path(trainer.default_root_dir), self._update))
