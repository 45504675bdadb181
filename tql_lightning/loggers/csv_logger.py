"""``metrics.csv``: whole rows only, also after a kill or with a full disk, continued by the next part of a run."""

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

from tql_lightning.system.files import remove_leftovers, write_text_whole
from tql_lightning.system.full_disk import unwritten


class ContinuedCSVLogger(CSVLogger):
    """Writes ``metrics.csv`` into a folder, after what an earlier part of the run wrote there.

    Lightning's own logger deletes the file when a run is resumed or validated. Rows of updates that a killed run did
    after its last checkpoint are removed when it is resumed: it does them again.

    Rows that cannot be written, for a full disk above all, are kept, and a warning says so; they are written as soon as
    that is possible, each whole or not at all. Only at a run's end it is an error.

    Args:
        save_dir: folder of metrics.csv.
        flush_logs_every_n_steps: log calls between writes to the file; it is also written with every checkpoint.
    """

    def __init__(self, save_dir: str, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)
        self._unwritten = 0
        self._kept: dict[int, set[str]] = {}  # names by update, of what an earlier part of the run logged
        self._warned = False

    @rank_zero_only
    def continue_from(self, update: int) -> None:
        """Removes rows of later updates, and one that a kill cut short; see `chunks.ContinuedLogger`."""
        self.save()
        self._kept = self.experiment.keep_until(update)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Keeps metrics until there are enough to write; Lightning's counts steps, which here jump over its own.

        What an earlier part of the run has logged is left out, as of an evaluation that it had no time to forget.
        """
        if step is not None and metrics.keys() <= self._kept.get(step, set()):
            return
        super().log_metrics(dict(metrics), step)
        self._unwritten += 1
        if self._unwritten >= self._flush_logs_every_n_steps:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Writes what was logged since the last time; keeps it if that cannot be, with one warning until it can."""
        try:
            super().save()
            self._warned = False
        except OSError as error:
            if not self._warned:
                reason = unwritten(self.experiment.metrics_file_path, error)
                warnings.warn(f"{reason}; its rows are kept in memory, training goes on", stacklevel=2)
            self._warned = True
        self._unwritten = 0

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is left.

        Raises:
            OSError: it cannot be written, and a training that went well is at its end.
        """
        super().finalize(status)
        lost = len(self.experiment.metrics) if self._warned else 0
        if lost and status == "success":
            raise OSError(
                f"{self.experiment.metrics_file_path}: {lost} rows of metrics could not be written; make room"
            )

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Writes, so that a run that is killed has the metrics of what it can continue from."""
        self.save()

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsFile:
        """What writes the file; made at the first use."""
        if self._experiment is None:
            self._experiment = MetricsFile(self.log_dir)
        return self._experiment  # type: ignore[return-value]


class MetricsFile(ExperimentWriter):
    """Lightning's writer of CSV files, which goes on with a file that is there."""

    def save(self) -> None:
        """Lightning's; where it cannot be written whole, file and columns are as they were."""
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
        """Removes rows of later updates; returns the names of what the others hold, by update."""
        kept: dict[int, set[str]] = {}
        if Path(self.metrics_file_path).is_file():
            rows = [row for row in self._rows() if int(float(row["step"])) <= update]
            self._write_whole(self.metrics_keys, rows)
            for row in rows:
                kept.setdefault(int(float(row["step"])), set()).update(name for name, value in row.items() if value)
        return kept

    def _check_log_dir_exists(self) -> None:
        """Takes over the columns that are there, where Lightning's removes the file; mends what a kill cut short."""
        file = Path(self.metrics_file_path)
        remove_leftovers(file.parent, file.name)
        if not file.is_file():
            return
        content = file.read_bytes()
        if not content.endswith(b"\n"):
            write_text_whole(file, content[: content.rfind(b"\n") + 1].decode())
        with file.open(newline="") as lines:
            self.metrics_keys = next(csv.reader(lines), [])
        if not self.metrics_keys:
            file.unlink()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Lightning's, but the file is whole at any time, where Lightning's is empty for a moment."""
        self._write_whole(fieldnames, self._rows())

    def _rows(self) -> list[dict[str, str]]:
        with Path(self.metrics_file_path).open(newline="") as lines:
            return list(csv.DictReader(lines))

    def _write_whole(self, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text_whole(Path(self.metrics_file_path), text.getvalue())
