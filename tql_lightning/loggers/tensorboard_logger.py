"""TensorBoard's event files, continued by the next part of a run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from tql_lightning.loggers.media import read_picture
from tql_lightning.system.full_disk import free_bytes, unwritten
from tql_lightning.system.private_api import event_file

MIN_FREE_BYTES = 10_000_000  # free space at which logging goes on after a full disk
# Scalars that matter most are logged a second time, under a group that sorts first.
OVERVIEW = "1 overview"
OVERVIEW_OF = (
    *("eval/return", "eval/success_rate", "train/td_loss", "train/q_mean"),
    "train/attention_entropy_share/layer_0/value",
)
LAYOUT = {  # of the tab "Custom scalars"
    "evaluation": {
        name.replace("_", " "): ["Margin", [f"eval/{name}", f"eval/{name}_low", f"eval/{name}_high"]]
        for name in ("return", "success_rate", "normalized_score", "length")
    },
    "critic": {
        "attention entropy and targets": ["Multiline", ["train/attention_entropy/.*", "train/target_entropy/.*"]],
        "temperatures": ["Multiline", ["train/temperature/.*"]],
        "Q": ["Multiline", ["train/q_mean", "train/target_q_mean", "train/policy_q_mean"]],
        "TD loss": ["Multiline", ["train/td_loss"]],
    },
}
P = ParamSpec("P")


def _unless_full(
    write: Callable[Concatenate[ContinuedTensorBoardLogger, P], None],
) -> Callable[Concatenate[ContinuedTensorBoardLogger, P], None]:
    """Turns a write that fails into one warning, and skips writes until there is room again."""

    @wraps(write)
    def guarded(self: ContinuedTensorBoardLogger, /, *args: P.args, **kwargs: P.kwargs) -> None:
        free = free_bytes(Path(self.log_dir)) if self._full else None
        if free is not None and free < MIN_FREE_BYTES:
            return
        try:
            write(self, *args, **kwargs)
            self._full = False
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__  # Lightning wraps errors in a ValueError
            if not isinstance(cause, OSError):
                raise
            if not self._full:
                warnings.warn(f"{unwritten(self.log_dir, cause)}; training goes on without TensorBoard", stacklevel=3)
            self._full, self._experiment = True, None

    return guarded


class ContinuedTensorBoardLogger(TensorBoardLogger):
    """Logs to TensorBoard; a continued run hides what was logged after the update that it continues from.

    The events stay in their files. TensorBoard and its ``EventAccumulator`` leave them out (``purge_step``).

    A full disk does not end training: one warning is given, and events are dropped until there is room again. They then
    go into another file of the same folder, which TensorBoard shows as one run. metrics.csv misses nothing.

    The scalars that matter most come first, in a group of their own; the tab "Custom scalars" draws evaluations with
    their intervals, and entropies with their targets.

    Args:
        save_dir: Folder above ``name``.
        name: Folder of the event files, or "" for ``save_dir``.
        version: Folder below ``name``, or "" for none.

    Examples:
        >>> logger = ContinuedTensorBoardLogger("run")
        >>> logger.log_metrics({"train/td_loss": 0.5}, step=10)
        >>> logger.finalize("success")
        >>> Path(logger.log_dir).name
        'tensorboard'
        >>> logger.finalize("success")
    """

    _full = False  # the last write failed
    _used = False  # something was logged

    def __init__(self, save_dir: str, name: str = "tensorboard", version: int | str | None = "") -> None:
        super().__init__(save_dir, name, version, default_hp_metric=False)

    @rank_zero_only
    def continue_from(self, update: int) -> None:
        """Begins a file that hides later events; see `ContinuedLogger`."""
        self.finalize("continued")
        self._experiment = None
        _rename_to_before(int(time.time()), Path(self.log_dir))
        self._kwargs["purge_step"] = update + 1
        self._used = True
        self.save()

    @rank_zero_only
    @_unless_full
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Logs scalars at an update."""
        if not self._used:
            self.experiment.add_custom_scalars(LAYOUT)
        self._used = True
        scalars = {name: float(value) for name, value in metrics.items()}
        first = {f"{OVERVIEW}/{name.partition('/')[2]}": scalars[name] for name in OVERVIEW_OF if name in scalars}
        super().log_metrics(first | scalars, step)

    @rank_zero_only
    @_unless_full
    def log_image(self, key: str, images: Sequence[str], step: int | None = None) -> None:
        """Logs picture files at an update."""
        self._used = True
        for index, path in enumerate(images):
            name = key if len(images) == 1 else f"{key}/{index}"
            self.experiment.add_image(name, read_picture(Path(path)), step, dataformats="HWC")

    @rank_zero_only
    @_unless_full
    def save(self) -> None:
        """Writes what was logged."""
        self._write()

    @rank_zero_only
    @_unless_full
    def finalize(self, status: str) -> None:
        """Writes what was logged and closes the file; removes the file of a run that failed before it logged."""
        if self._experiment is not None and status == "failed" and not self._used:
            file = event_file(self.experiment)
            self.experiment.close()
            self._experiment = None
            file.unlink()
            with suppress(OSError):  # other files are in the folder
                file.parent.rmdir()
        elif self._experiment is not None:
            self._write()
            super().finalize(status)

    @property
    def log_dir(self) -> str:
        """Folder of the event files. A "$" in its name is one, as in a run's other files, and names no variable."""
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return str(Path(self.root_dir).expanduser() / version)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, made at first use. Its errors name the folder, which those of its thread do not."""
        try:
            return super().experiment
        except OSError as error:
            error.filename = error.filename or self.log_dir
            raise

    def _write(self) -> None:
        """Flushes. An empty event behind the others makes the writing thread report what it failed to write."""
        from tensorboard.compat.proto.event_pb2 import Event

        if (files := self.experiment.file_writer) is not None:  # None once closed
            files.add_event(Event())
        super().save()
        self._kwargs.pop("purge_step", None)  # only now: a file that could not be written hides nothing


def _rename_to_before(second: int, folder: Path) -> None:
    """Gives event files earlier names than one of this second, in their order.

    TensorBoard reads files in the order of the second in their names, and hides only what it has read before. The
    clock may have been set back, or another machine's clock be behind.
    """
    latest = second - 1
    for path in sorted(folder.glob("events.out.tfevents.*"), reverse=True):
        *start, stamp, rest = path.name.split(".", 4)
        if not stamp.isdecimal() or int(stamp) <= latest:
            return
        path.rename(path.with_name(".".join([*start, f"{latest:010d}", rest])))
        latest -= 1
