"""Checkpoints that cannot be written, known to every process."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Trainer


def why_unsaved(trainer: Trainer, save: Callable[[], None]) -> str | None:
    """Saves, and gives the reason if that cannot be written; called on every process, the same is known to all.

    Args:
        trainer: that saves.
        save: calls ``trainer.save_checkpoint``, once.
    """
    reason = None
    try:
        save()
    except OSError as error:
        reason = str(error)
        trainer.strategy.barrier()  # where the others wait for what should have been written
    found: str | None = trainer.strategy.broadcast(reason)
    return found
