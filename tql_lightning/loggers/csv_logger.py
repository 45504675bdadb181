"""``metrics.csv`` with complete rows only, also after a kill or a full disk; continued by the next part of a run."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from tql_lightning.run.metrics_csv import update_of
from tql_lightning.system.files import remove_leftovers, write_text_whole
from tql_lightning.system.full_disk import unwritten


class ContinuedCSVLogger(CSVLogger):
    """Appends to the ``metrics.csv`` of a folder, where Lightning's logger deletes an existing one.

    When a killed run is resumed, rows after its last checkpoint are removed, since it repeats those updates.

    Rows that cannot be written, usually because the disk is full, stay in memory with one warning, and are written once
    there is room. Only at the end of a run are unwritten rows an error.

    Args:
        save_dir: Folder of metrics.csv.
        flush_logs_every_n_steps: Number of log calls between writes. Every checkpoint writes, too.

    Examples:
        >>> logger = ContinuedCSVLogger("run")
        >>> logger.log_metrics({"train/td_loss": 0.5}, step=10)
        >>> logger.save()
        >>> print(Path("run/metrics.csv").read_text().strip())
        step,train/td_loss
        10,0.5
    """

    def __init__(self, save_dir: str, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)
        self._unwritten = 0
        self._kept: dict[int, set[str]] = {}  # names that an earlier part of the run logged, by update
        self._warned = False

    @rank_zero_only
    def continue_from(self, update: int) -> None:
        """Removes rows of later updates and a row that a kill cut short; see `ContinuedLogger`."""
        self.save()
        self._kept = self.experiment.keep_until(update)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Collects metrics and writes after a number of calls, where Lightning's interval counts steps, which may skip.

        Metrics that an earlier part of the run has logged are skipped, such as those of a repeated evaluation.
        """
        if step is not None and metrics.keys() <= self._kept.get(step, set()):
            return
        super().log_metrics(dict(metrics), step)
        self._unwritten += 1
        if self._unwritten >= self._flush_logs_every_n_steps:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Writes the collected rows; if that fails, keeps them and warns once."""
        try:
            super().save()
            self._warned = False
        except OSError as error:
            if not self._warned:
                reason = unwritten(self.experiment.metrics_file_path, error)
                warnings.warn(f"{reason}; its rows stay in memory, training goes on", stacklevel=2)
            self._warned = True
        self._unwritten = 0

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the remaining rows.

        Raises:
            OSError: they cannot be written, and training was successful.
        """
        super().finalize(status)
        lost = len(self.experiment.metrics) if self._warned else 0
        if lost and status == "success":
            raise OSError(
                f"{self.experiment.metrics_file_path}: {lost} rows of metrics could not be written; make room"
            )

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Writes, so that a killed run has all metrics up to the checkpoint it continues from."""
        self.save()

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsFile:
        """The file's writer, made at first use."""
        if self._experiment is None:
            self._experiment = MetricsFile(self.log_dir)
        return self._experiment  # type: ignore[return-value]


class MetricsFile(ExperimentWriter):
    """Lightning's CSV writer, changed to append to an existing file."""

    def save(self) -> None:
        """Appends rows; if that fails, restores the file and the columns."""
        file, columns = Path(self.metrics_file_path), list(self.metrics_keys)
        size = file.stat().st_size if file.is_file() else None
        try:
            super().save()
        except OSError:
            self.metrics_keys = columns
            if size is None:
                file.unlink(missing_ok=True)
            elif file.stat().st_size > size:
                os.truncate(file, size)
            raise

    def keep_until(self, update: int) -> dict[int, set[str]]:
        """Removes rows of later updates; returns the metric names of the others by update."""
        kept: dict[int, set[str]] = {}
        if Path(self.metrics_file_path).is_file():
            rows = [row for row in self._rows() if update_of(row) <= update]
            self._write_whole(self.metrics_keys, rows)
            for row in rows:
                kept.setdefault(update_of(row), set()).update(name for name, value in row.items() if value)
        return kept

    def _check_log_dir_exists(self) -> None:
        """Reads the existing columns, where Lightning's removes the file; drops a row that a kill cut short.

        Rows are appended in place, so a hard link gets a copy of its own first.
        """
        file = Path(self.metrics_file_path)
        remove_leftovers(file.parent, file.name)
        if not file.is_file():
            return
        content = file.read_bytes()
        if not content.endswith(b"\n") or file.stat().st_nlink > 1:
            write_text_whole(file, content[: content.rfind(b"\n") + 1].decode(errors="replace"))
        with file.open(newline="", errors="replace") as lines:
            self.metrics_keys = next(csv.reader(lines), [])
        if not self.metrics_keys:
            file.unlink()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Rewrites the file atomically, where Lightning's truncates it first."""
        self._write_whole(fieldnames, self._rows())

    def _rows(self) -> list[dict[str, str]]:
        """All rows.

        Raises:
            ValueError: the file is not one that this logger wrote.
        """
        try:
            with Path(self.metrics_file_path).open(newline="") as lines:
                rows = list(csv.DictReader(lines, strict=True))
            for row in rows:
                update_of(row)
                if None in row or None in row.values():
                    raise ValueError("a row of another length than the first")
        except (ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
            raise ValueError(
                f"{self.metrics_file_path}: expected numbers by column and a column step, as tql fit writes, found "
                f"{type(error).__name__}: {str(error)[:100]}; move it away to continue without earlier metrics"
            ) from error
        return rows

    def _write_whole(self, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text_whole(Path(self.metrics_file_path), text.getvalue())
