"""Saves checkpoints and tells every process if the write failed."""

from __future__ import annotations

import copy
from collections.abc import Callable

from lightning.pytorch import Callback, Trainer

# Attributes of ModelCheckpoint that describe its files; Lightning sets some before the write, on every process.
CHECKPOINT_STATE = {
    *("best_k_models", "best_model_path", "best_model_score", "kth_best_model_path", "kth_value", "current_score"),
    *("last_model_path", "_last_checkpoint_saved", "_last_global_step_saved"),
}


def try_save(callback: Callback, trainer: Trainer, save: Callable[[], None]) -> str | None:
    """Saves; returns None, or the error's text on every process if the write failed. Call it on every process.

    Args:
        callback: Callback that saves. After a failed write a ModelCheckpoint's records of its files are restored.
        trainer: Trainer of the run.
        save: Function that calls ``trainer.save_checkpoint`` at most once.
    """
    before = {name: copy.copy(value) for name, value in vars(callback).items() if name in CHECKPOINT_STATE}
    reason = None
    try:
        save()
    except OSError as error:
        reason = str(error)
        trainer.strategy.barrier()  # the one that ends save_checkpoint, at which the other processes wait
    found: str | None = trainer.strategy.broadcast(reason)
    if found is not None:
        vars(callback).update(before)
    return found
