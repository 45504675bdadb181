"""Intervals in updates, where a step of the trainer is a chunk of them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def require_multiple(trainer: Trainer, name: str, every_n_updates: int) -> None:
    """Refuses an interval that would end within a chunk of updates.

    Args:
        trainer: with its datamodule.
        name: of the setting, for the message.
        every_n_updates: the interval.

    Raises:
        ValueError: it is no multiple of the data's ``updates_per_step``.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    per_step = getattr(datamodule, "updates_per_step", 1)
    if every_n_updates % per_step:
        raise ValueError(f"{name}: expected a multiple of data.updates_per_step={per_step}, found {every_n_updates}")


def is_due(trainer: Trainer, every_n_updates: int) -> bool:
    """Whether the update just done is a multiple of an interval, or the run's last."""
    return trainer.global_step % every_n_updates == 0 or 0 <= trainer.max_steps <= trainer.global_step
