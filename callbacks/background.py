"""Base class of observers that work in another process while training goes on."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tql_lightning.algorithms.loading import check_contents
from tql_lightning.callbacks.checkpointing import GracefulInterrupt
from tql_lightning.callbacks.intervals import is_due
from tql_lightning.callbacks.saving import try_save
from tql_lightning.evaluation.background import BackgroundEvaluator, Job, Outcome
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import read_checkpoint
from tql_lightning.run.folder import EVALUATION_FOLDER, pending_file

MOST_PENDING = 2  # unfinished snapshots; training waits rather than add more
WAIT_SECONDS = 0.2
AFTER_SIGNAL_SECONDS = (
    120.0  # that training waits for them where a signal has ended it; snapshots stay for its continuation
)


class BackgroundObserver(Callback, ABC):
    """Gives snapshots of the model to another process, and waits for unfinished jobs when training ends.

    Subclasses call `submit`, and write results in `log_finished`. The process starts with the first job.

    Args:
        timeout: Seconds after which a step of an environment counts as hung.

    Raises:
        ValueError: ``timeout`` is not above 0.
    """

    plural = "jobs"  # name of the jobs in messages
    kind = EVALUATION_FOLDER  # folder in the run's folder for waiting snapshots

    def __init__(self, timeout: float) -> None:
        if timeout <= 0:
            raise ValueError(f"{type(self).__name__}.timeout: expected above 0, found {timeout}")
        self.timeout = timeout
        self._own: set[str] = set()  # snapshots that this process wrote
        self._evaluator: BackgroundEvaluator | None = None

    @abstractmethod
    def log_finished(self, trainer: Trainer, until_pending: int | None = None) -> None:
        """Writes the outcomes that `finished` returns; called on every process.

        Args:
            trainer: Trainer of the run.
            until_pending: Number of unfinished jobs to wait for; None for no waiting.
        """

    def save_snapshot(self, trainer: Trainer, weights_only: bool = True) -> tuple[Path, str | None]:
        """Writes a snapshot of the model for a job; called on every process.

        Args:
            trainer: Trainer of the run.
            weights_only: Whether to leave out the optimizer's state and the loops.

        Returns:
            The file, and None or the error's text if the write failed.
        """
        snapshot = pending_file(Path(trainer.default_root_dir), trainer.global_step, self.kind)
        self._own.add(str(snapshot))
        reason = try_save(self, trainer, partial(trainer.save_checkpoint, snapshot, weights_only))
        trainer.strategy.checkpoint_io.teardown()  # waits for a plugin that writes in a thread
        return snapshot, reason

    def submit(self, job: Job) -> None:
        """Submits a job without waiting.

        A snapshot that was in the folder before may be a stranger's: it may name what checkpoints may name, and what
        this run has imported.
        """
        self._evaluator = self._evaluator or BackgroundEvaluator(self.timeout)
        self._evaluator.submit(replace(job, trusted=job.snapshot in self._own or _names_only_known(job.snapshot)))

    def finished(self, trainer: Trainer, until_pending: int | None = None) -> list[Outcome]:
        """Outcomes since the last call, in the order of the jobs; a signal ends the waiting, soon or at once."""
        outcomes = []
        known, started = signals_heard(trainer), time.monotonic()  # another signal ends the waiting
        while self._evaluator is not None and self._evaluator.pending:
            wait = until_pending is not None and len(self._evaluator.pending) > until_pending
            outcome = self._evaluator.next_outcome(WAIT_SECONDS if wait else 0.0)
            if outcome is not None:
                outcomes.append(outcome)
            elif (
                not wait
                or signals_heard(trainer) != known
                or (known and time.monotonic() - started > AFTER_SIGNAL_SECONDS)
            ):
                break
        return outcomes

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits for what is still being worked at in the background; checkpoints have been written by now."""
        waiting = [] if self._evaluator is None else self._evaluator.pending
        if waiting:
            updates = ", ".join(str(job.update) for job in waiting)
            limit = f", {AFTER_SIGNAL_SECONDS:g} s at most" if signals_heard(trainer) else ""
            print(f"\nWaiting for {self.plural} of updates {updates}{limit} (Ctrl-C: leave them)", file=sys.stderr)
        self.log_finished(trainer, until_pending=0)
        left = [] if self._evaluator is None else self._evaluator.pending
        if left:
            updates = ", ".join(str(job.update) for job in left)
            print(f"\nLeft for the continued run: {self.plural} of updates {updates}", file=sys.stderr)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Waits also where training failed, with one process; after a second Ctrl-C not."""
        if trainer.world_size == 1 and not isinstance(exception, KeyboardInterrupt):
            self.log_finished(trainer, until_pending=0)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the process in the background."""
        if self._evaluator is not None:
            self._evaluator.close()
            self._evaluator = None
        if stage == "fit" and trainer.is_global_zero:
            with suppress(OSError):  # snapshots that something is still to be made of stay
                pending_file(Path(trainer.default_root_dir), 0, self.kind).parent.rmdir()


def _names_only_known(snapshot: str) -> bool:
    try:
        check_contents(snapshot, read_checkpoint(snapshot, mmap=True), plays=False)
    except CheckpointError:
        return False
    return True


def ends_unobserved(trainer: Trainer, every_n_updates: int) -> bool:
    """Whether a run that ends now, and not by a signal, has made updates since its last multiple of an interval."""
    return not (is_due(trainer, every_n_updates) or interrupted(trainer))


def interrupted(trainer: Trainer) -> bool:
    """Whether a signal is ending training; the same on every process."""
    return any(callback.received is not None for callback in _interrupts(trainer))


def hears_signal(trainer: Trainer) -> bool:
    """Whether a signal has reached this process; other processes may not know yet."""
    return any(callback.heard is not None for callback in _interrupts(trainer))


def signals_heard(trainer: Trainer) -> int:
    """How many signals this process got."""
    return sum(callback.count for callback in _interrupts(trainer))


def _interrupts(trainer: Trainer) -> list[GracefulInterrupt]:
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    return [callback for callback in callbacks if isinstance(callback, GracefulInterrupt)]
