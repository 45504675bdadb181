"""Checkpoints that cannot be written, known to every process."""

from __future__ import annotations

import copy
from collections.abc import Callable

from lightning.pytorch import Callback, Trainer

# What a ModelCheckpoint records of its files, partly before it has written them or where another process writes.
CHECKPOINT_STATE = {
    *("best_k_models", "best_model_path", "best_model_score", "kth_best_model_path", "kth_value", "current_score"),
    *("last_model_path", "_last_checkpoint_saved", "_last_global_step_saved"),
}


def try_save(callback: Callback, trainer: Trainer, save: Callable[[], None]) -> str | None:
    """Saves, and gives the reason if that cannot be written; called on every process, the same is known to all.

    Args:
        callback: that saves; if it is a ModelCheckpoint, it then takes what is there for its last and best as before.
        trainer: that saves.
        save: calls ``trainer.save_checkpoint``, once or not at all.
    """
    before = {name: copy.copy(value) for name, value in vars(callback).items() if name in CHECKPOINT_STATE}
    reason = None
    try:
        save()
    except OSError as error:
        reason = str(error)
        trainer.strategy.barrier()  # where the others wait for what should have been written
    found: str | None = trainer.strategy.broadcast(reason)
    if found is not None:
        vars(callback).update(before)
    return found
