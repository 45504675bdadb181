"""TensorBoard's event files, continued by the next part of a run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor

from tql_lightning.loggers.media import read_picture
from tql_lightning.system.full_disk import free_bytes, unwritten

MIN_FREE_BYTES = 10_000_000  # bytes that are to be free before TensorBoard goes on after a disk was full


class ContinuedTensorBoardLogger(TensorBoardLogger):
    """Lightning's logger for TensorBoard; a continued run hides what was logged after the update that it goes on from.

    The events stay in their files: it is TensorBoard that leaves them out, also for who reads them with its
    ``EventAccumulator``.

    A file that cannot be written, for a full disk above all, does not end training. What was to be logged meanwhile is
    missing in TensorBoard (metrics.csv has it). Once there is room again it goes on in another file of the same folder,
    which TensorBoard shows as one.

    Args:
        save_dir: folder above ``name``.
        name: folder of the event files, or "" for ``save_dir``.
        version: folder below, or "" for none.
        log_graph: see Lightning's.
        default_hp_metric: see Lightning's.
        prefix: before each key.
        sub_dir: a further folder below.
    """

    def __init__(
        self,
        save_dir: str,
        name: str = "tensorboard",
        version: int | str | None = "",
        log_graph: bool = False,
        default_hp_metric: bool = False,
        prefix: str = "",
        sub_dir: str | None = None,
    ) -> None:
        super().__init__(save_dir, name, version, log_graph, default_hp_metric, prefix, sub_dir)
        self._full = False

    @rank_zero_only
    def continue_from(self, update: int) -> None:
        """Begins a file that says so; see `chunks.ContinuedLogger`."""
        if self._experiment is not None:
            self._try(self._experiment.close)
            self._experiment = None
        _wait_for_a_new_second(Path(self.log_dir))
        self._kwargs["purge_step"] = update + 1
        self.save()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Logs scalars at an update."""
        scalars = {name: float(value) for name, value in metrics.items()}
        self._try(partial(super().log_metrics, scalars, step))

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str], step: int | None = None) -> None:
        """Logs picture files at an update."""
        for index, path in enumerate(images):
            name = key if len(images) == 1 else f"{key}/{index}"
            pixels = read_picture(Path(path))
            self._try(partial(self._add_image, name, pixels, step))

    @rank_zero_only
    def save(self) -> None:
        """Writes what was logged."""
        self._try(self._write)
        if not self._full:  # else the next file would hide what this run has logged
            self._kwargs.pop("purge_step", None)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what was logged, and ends the file; after a start that was refused there is none."""
        if self._experiment is not None and status == "failed" and not self.hparams:
            self._try(self._withdraw)
        if self._experiment is not None:
            self.save()
        self._try(partial(super().finalize, status))

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer; made at the first use. Its errors name the folder, as those of another thread do not."""
        try:
            return super().experiment
        except OSError as error:
            error.filename = error.filename or self.log_dir
            raise

    def _write(self) -> None:
        """Lightning's ``save``; raises what became of every event.

        The thread that writes may tell of its failure only after the flush is over. It has told of it once an event
        behind the others is done; with that one, which has no content, nothing is lost.
        """
        from tensorboard.compat.proto.event_pb2 import Event

        if (files := self.experiment.file_writer) is not None:  # else it is closed
            files.add_event(Event())
        super().save()

    def _withdraw(self) -> None:
        """Removes the file, and the folder if that is all there was, where nothing was logged."""
        self.experiment.flush()
        file = Path(self.experiment.file_writer.event_writer._file_name)
        with file.open("rb") as events:
            version = int.from_bytes(events.read(8), "little")  # the first record's length, without 16 bytes around it
        if file.stat().st_size == version + 16:
            self.experiment.close()
            self._experiment = None
            file.unlink()
            with suppress(OSError):  # of another run
                file.parent.rmdir()

    def _add_image(self, name: str, pixels: NDArray[np.uint8], step: int | None) -> None:
        self.experiment.add_image(name, pixels, step, dataformats="HWC")

    def _try(self, write: Callable[[], None]) -> None:
        free = free_bytes(Path(self.log_dir)) if self._full else None
        if free is not None and free < MIN_FREE_BYTES:
            return
        try:
            write()
            self._full = False
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__  # Lightning takes it for a bad value
            if not isinstance(cause, OSError):
                raise
            if not self._full:
                warnings.warn(f"{unwritten(self.log_dir, cause)}; training goes on without TensorBoard", stacklevel=3)
            self._full, self._experiment = True, None


def _wait_for_a_new_second(folder: Path) -> None:
    """Lets the next event file be read after those that are there: names begin with the second they were made in.

    Within one, they are read in the order of a number as text, 10 before 9.
    """
    made = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.[0-9]*")]
    left = max(made, default=0) + 1 - time.time()
    if 0.0 < left <= 1.0:  # a clock that was put back is not waited for
        time.sleep(left)
