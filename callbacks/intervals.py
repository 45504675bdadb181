"""Intervals in updates, where a trainer step may hold several."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def require_multiple(trainer: Trainer, name: str, every_n_updates: int) -> None:
    """Rejects an interval that would end within a trainer step.

    Args:
        trainer: Trainer with its datamodule.
        name: Name of the setting, for the message.
        every_n_updates: Interval.

    Raises:
        ValueError: The interval is not a multiple of the data's ``updates_per_step``.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    per_step = getattr(datamodule, "updates_per_step", 1)
    if every_n_updates % per_step:
        raise ValueError(f"{name}: expected a multiple of data.updates_per_step={per_step}, found {every_n_updates}")


def is_due(trainer: Trainer, every_n_updates: int) -> bool:
    """Whether the update just done is a multiple of an interval, or the last of the run or of its offline phase."""
    update = trainer.global_step
    ends = (trainer.max_steps, getattr(getattr(trainer, "datamodule", None), "offline_updates", None))
    return update % every_n_updates == 0 or 0 <= trainer.max_steps <= update or update in ends
