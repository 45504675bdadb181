"""Restores Lightning's counts of batches, so that a continued run validates as an uninterrupted one would.

One of Lightning's batches is a chunk of K updates, the data's ``updates_per_step``. Chunks end at multiples of K. A
stop may come within a chunk, and a checkpoint may be written before the validation at its update.
"""

from __future__ import annotations

from typing import Any

from tql_lightning.system.private_api import skip_next_validation, validation_is_due

_COUNTS = ("ready", "started", "processed", "completed")


def chunk_size(trainer: Any) -> int:
    """Returns K, or 1 for data other than an `OfflineDataModule`."""
    return int(getattr(trainer.datamodule, "updates_per_step", 1))


def scheduled_updates(trainer: Any) -> int:
    """Returns the updates that learning rates are scheduled over: the offline ones of a run that goes online after."""
    return int(getattr(trainer.datamodule, "offline_updates", None) or trainer.max_steps)


def restore_progress(trainer: Any, checkpoint: dict[str, Any], validated: bool) -> None:
    """Sets the loops of a checkpoint to those of an uninterrupted run; does nothing for data without chunks.

    Args:
        trainer: Trainer of the continued run, with its datamodule.
        checkpoint: Checkpoint to continue from; changed in place.
        validated: Whether the validation at the checkpoint's update is done. If one is due and not done, it follows.
    """
    if not hasattr(trainer.datamodule, "updates_per_step") or "loops" not in checkpoint:
        return
    loops, size = checkpoint["loops"]["fit_loop"], chunk_size(trainer)
    chunks, within = divmod(int(checkpoint["global_step"]), size)
    limit = trainer.limit_train_batches  # chunks per epoch if it is an integer
    of_epoch = chunks % limit if isinstance(limit, int) and limit else chunks
    whole, current = dict.fromkeys(_COUNTS, chunks), dict.fromkeys(_COUNTS, of_epoch)
    loops["epoch_loop.batch_progress"] |= {"total": whole, "current": current, "is_last_batch": False}
    validation = loops["epoch_loop.val_loop.batch_progress"]
    if not within and not validated:  # as Lightning marks a validation that was broken off, before its first batch
        none = dict.fromkeys(_COUNTS, 0)
        begun = none | {"ready": 1, "started": 1}
        validation |= {"total": begun, "current": none, "is_last_batch": False}
    else:  # the mark of an earlier start stays in Lightning's total, and would break off a finished validation
        validation["total"] = dict.fromkeys(_COUNTS, validation["total"]["completed"])


def validation_follows(trainer: Any) -> bool:
    """Whether validation is due after this chunk, not counting the one that Lightning makes because of a stop."""
    ends_chunk = trainer.global_step % chunk_size(trainer) == 0 or trainer.global_step == trainer.max_steps
    stops = trainer.should_stop
    if stops:  # otherwise untouched, since a signal may set it at any time
        trainer.should_stop = False
    due = ends_chunk and validation_is_due(trainer)
    if stops:
        trainer.should_stop = True
    return due


def skip_validation_of_a_stop(trainer: Any) -> None:
    """Skips the validation that Lightning makes because of a stop, unless one is due here anyway."""
    if trainer.should_stop and not validation_follows(trainer):
        skip_next_validation(trainer)
