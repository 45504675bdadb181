"""Loggers beside Lightning's."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor


class ContinuedCSVLogger(CSVLogger):
    """Writes ``metrics.csv`` into a folder, after what an earlier part of the run wrote there.

    Lightning's own logger deletes the file when a run is resumed or validated. Updates that a killed run did
    after its last checkpoint are in the file twice once it is resumed; the later row counts.

    Args:
        save_dir: folder of metrics.csv.
        flush_logs_every_n_steps: log calls between writes to the file; it is also written with every checkpoint.
    """

    def __init__(self, save_dir: str, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)
        self._unwritten = 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Keeps metrics until there are enough to write; Lightning's counts steps, which here jump over its own."""
        super().log_metrics(dict(metrics), step)
        self._unwritten += 1
        if self._unwritten >= self._flush_logs_every_n_steps:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Writes what was logged since the last time."""
        super().save()
        self._unwritten = 0

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Writes, so that a run that is killed has the metrics of what it can continue from."""
        self.save()

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the file; made at the first use."""
        if self._experiment is None:
            self._experiment = _ContinuedWriter(self.log_dir)
        return self._experiment  # type: ignore[return-value]


class _ContinuedWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Takes over the columns that are there, where Lightning's removes the file."""
        file = Path(self.metrics_file_path)
        if file.is_file():
            with file.open(newline="") as lines:
                self.metrics_keys = next(csv.reader(lines), [])
