"""How Lightning counts chunks of updates and validates by that count, so that a continued run does as if never stopped.

A stop may come within a chunk, and a checkpoint be written before the validation at its update. Which chunk an update
belongs to is a function of the update alone: chunks end at multiples of K, the data's ``updates_per_step``.
"""

from __future__ import annotations

from typing import Any

from tql_lightning.system.private_api import skip_next_validation, validation_is_due

_COUNTS = ("ready", "started", "processed", "completed")


def chunk_size(trainer: Any) -> int:
    """K, or 1 for data that are no `OfflineDataModule`."""
    return int(getattr(trainer.datamodule, "updates_per_step", 1))


def restore_progress(trainer: Any, checkpoint: dict[str, Any], validated: bool) -> None:
    """Makes the loops of a checkpoint those of an uninterrupted run; leaves those over other data than ours alone.

    Args:
        trainer: that is to continue, with its datamodule.
        checkpoint: to continue from; changed in place.
        validated: whether the validation at its update is done, if one is due; else all of it follows.
    """
    if not hasattr(trainer.datamodule, "updates_per_step") or "loops" not in checkpoint:
        return
    loops, size = checkpoint["loops"]["fit_loop"], chunk_size(trainer)
    chunks, within = divmod(int(checkpoint["global_step"]), size)
    limit = trainer.limit_train_batches  # chunks of an epoch, where it is a whole number
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
    """Whether validation is due after the chunk in hand, apart from the one that Lightning makes when it is to stop."""
    ends_chunk = trainer.global_step % chunk_size(trainer) == 0 or trainer.global_step == trainer.max_steps
    stops = trainer.should_stop
    if stops:  # else it is left alone: a signal may set it at any time
        trainer.should_stop = False
    due = ends_chunk and validation_is_due(trainer)
    if stops:
        trainer.should_stop = True
    return due


def skip_validation_of_a_stop(trainer: Any) -> None:
    """Where training is to stop, leaves out the validation that an uninterrupted run would not make here."""
    if trainer.should_stop and not validation_follows(trainer):
        skip_next_validation(trainer)
