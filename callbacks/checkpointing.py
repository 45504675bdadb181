"""Checkpoints to continue from, also after Ctrl-C."""

from __future__ import annotations

import signal
import sys
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from tql_lightning.callbacks.intervals import require_multiple
from tql_lightning.callbacks.saving import try_save
from tql_lightning.run.checkpoint_file import LAST, PREVIOUS, CheckpointError
from tql_lightning.run.checkpoint_io import CheckpointWriteError, WholeCheckpointIO, base_io, read_checkpoint
from tql_lightning.run.folder import set_aside, writes_nothing
from tql_lightning.run.superseded import tell_set_aside
from tql_lightning.system.files import keep_replaced
from tql_lightning.system.full_disk import training_goes_on
from tql_lightning.training.chunks import validation_follows
from tql_lightning.training.distributed import largest_over_processes


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``: written every N updates and whenever training ends, also by an interrupt.

    Continue from it with ``--ckpt_path=last``. With `WholeCheckpointIO`, the default of ``tql fit``, its predecessor
    stays as ``previous.ckpt``, which a run continues from if the last one is damaged.

    A failed write, as on a full disk, keeps the last good checkpoint and causes a warning. Training goes on, since
    there may be room at the next write. At the last update a failed write is an error.

    Args:
        dirpath: Folder of the checkpoint.
        every_n_updates: Updates between two writes, a multiple of the data's ``updates_per_step``.
        if_unwritable: What a failed write does: "continue" or "stop".

    Raises:
        ValueError: An argument is out of its range.

    Examples:
        >>> Path(LastCheckpoint("runs/mine/checkpoints", every_n_updates=500).dirpath).name
        'checkpoints'
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_updates: int = 10_000,
        if_unwritable: Literal["continue", "stop"] = "continue",
    ) -> None:
        if every_n_updates < 1:
            raise ValueError(f"LastCheckpoint.every_n_updates: expected at least 1, found {every_n_updates}")
        if if_unwritable not in ("continue", "stop"):
            raise ValueError(f"LastCheckpoint.if_unwritable: expected continue or stop, found {if_unwritable}")
        self.if_unwritable = if_unwritable
        self._ends = False
        super().__init__(
            dirpath=dirpath,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_updates,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the interval before any training."""
        if stage == "fit":
            require_multiple(trainer, "LastCheckpoint.every_n_updates", self._every_n_train_steps)
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes at the interval, unless validation is due: then `on_validation_end` writes."""
        if not validation_follows(trainer):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes at the interval, after validation, so that a continued run does not repeat it."""
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        due = trainer.global_step % self._every_n_train_steps == 0
        if due and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the checkpoint of the last update, whatever ended the run.

        Raises:
            CheckpointWriteError: The write failed.
        """
        self._ends = True
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets aside checkpoints of later updates, since the run repeats those updates."""
        super().on_train_start(trainer, pl_module)
        self._ends = False
        if trainer.is_global_zero and trainer.global_step > 0 and not writes_nothing(trainer):
            self._set_aside_later(trainer)

    def _set_aside_later(self, trainer: Trainer) -> None:
        """Sets aside later checkpoints, which ``--ckpt_path=last`` would otherwise continue from."""
        for path in (Path(self.dirpath or "") / name for name in (LAST, PREVIOUS)):
            if path.absolute() == Path(trainer.ckpt_path or "").absolute():
                continue
            try:
                later = read_checkpoint(path, mmap=True)["global_step"] > trainer.global_step
            except CheckpointError:  # missing or damaged, so that no run continues from it
                continue
            if later:
                with training_goes_on(path):
                    set_aside(path)
                    tell_set_aside([path], trainer.global_step)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Saves; a failed write ends training only at the last update or with ``if_unwritable="stop"``."""
        reason = try_save(self, trainer, partial(super()._save_last_checkpoint, trainer, monitor_candidates))
        if reason is None:
            return
        before = self.last_model_path
        what = f"update {trainer.global_step} is not saved: {reason}"
        kept = f"{before} is kept" if before else "there is no earlier one"
        if self._ends or self.if_unwritable == "stop":
            raise CheckpointWriteError(f"{what}\n{kept}: make room, and continue from it with --ckpt_path=last")
        if trainer.is_global_zero:
            warnings.warn(f"{what}; {kept}, training goes on", stacklevel=2)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Saves, and keeps the checkpoint that it replaces if this run wrote it or continues from it.

        Loggers write first, so that a run killed afterwards has the metrics up to its checkpoint.
        """
        for logger in trainer.loggers:
            with training_goes_on(logger.save_dir or trainer.default_root_dir):
                logger.save()
        path = Path(filepath).absolute()
        own = {Path(known).absolute() for known in (self._last_checkpoint_saved, trainer.ckpt_path) if known}
        whole = isinstance(base_io(trainer.strategy.checkpoint_io), WholeCheckpointIO)
        keeps = trainer.is_global_zero and whole and path in own
        with keep_replaced(path, path.with_name(PREVIOUS)) if keeps else nullcontext():
            super()._save_checkpoint(trainer, filepath)


class GracefulInterrupt(Callback):
    """Ctrl-C, SIGTERM or SIGUSR1 ends training after the update in hand, with a checkpoint; a second Ctrl-C at once.

    With several processes a signal to any of them stops all, after the same update: the last of a chunk. SIGUSR1 is
    what SLURM is asked to send before a job's time is over; Lightning's own handler of it would save in the middle of
    an update, each process in another.

    Attributes:
        received: Signal that ends training, or None; the same on every process.
        heard: Signal that reached this process, or None; other processes may not know yet.
        count: Number of signals that this process got.

    Examples:
        >>> callback = GracefulInterrupt()
        >>> callback.received is None  # the signal that ended training, if any
        True
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.heard: signal.Signals | None = None
        self.count = 0
        self._previous: dict[signal.Signals, Any] = {}
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the signal handlers."""
        self._trainer = trainer
        self.received = self.heard = None
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._handle)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """With several processes, tells all of them of a signal that one got."""
        if trainer.world_size > 1:
            number = largest_over_processes(int(self.heard or 0), trainer.strategy.root_device)
            if number:
                self.received = signal.Signals(number)
                trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints where the run stopped and how to continue it."""
        if self.received is None or not trainer.is_global_zero:
            return
        paths = [
            callback.last_model_path
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and callback.last_model_path
        ]
        saved = f"saved {paths[0]}; continue with --ckpt_path=last" if paths else "no checkpoint was configured"
        if trainer.global_step == 0:
            saved = "nothing to save; begin anew with --ckpt_path=last"
        print(f"\nStopped by {self.received.name} after update {trainer.global_step}: {saved}", file=sys.stderr)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        self._trainer = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.heard is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.heard = signal.Signals(number)
        self.count += 1
        trainer = self._trainer
        if trainer is None or trainer.is_global_zero:
            print(
                f"\n{self.heard.name}: stopping after the update in hand (Ctrl-C again: at once, without saving)",
                file=sys.stderr,
            )
        if trainer is None or trainer.world_size == 1:
            self.received = self.heard
        if trainer is not None and trainer.world_size == 1:
            trainer.should_stop = True
