"""Loggers beside Lightning's."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger
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


class TrackioLogger(Logger):
    """Logs to trackio, on this machine, pictures and videos included. Needs ``pip install trackio``.

    Args:
        project: that the run belongs to; ``trackio show --project PROJECT`` shows it.
        name: of the run; null for one of trackio's making.
        resume: whether a run of this name is continued: "never", "allow" or "must".
    """

    def __init__(
        self, project: str = "tql", name: str | None = None, resume: Literal["never", "allow", "must"] = "never"
    ) -> None:
        super().__init__()
        if find_spec("trackio") is None:
            raise ModuleNotFoundError("TrackioLogger: trackio is not installed; pip install trackio")
        self._project, self._run_name, self._resume = project, name, resume
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The run's name."""
        return self._run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of trackio; started at the first use."""
        if self._run is None:
            import trackio

            self._run = trackio.init(self._project, self._run_name, resume=self._resume, embed=False)
            self._run_name = self._run.name
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Keeps settings as the run's configuration."""
        settings = dict(vars(params) if isinstance(params, Namespace) else params)
        own = {name: str(value) for name, value in settings.items() if not name.startswith("_")}  # those are trackio's
        self.experiment.config.update(own)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Logs scalars at an update."""
        self.experiment.log({name: float(value) for name, value in metrics.items()}, step=step)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str], step: int | None = None) -> None:
        """Logs picture files at an update."""
        import trackio

        self.experiment.log(_numbered(key, [trackio.Image(path) for path in images]), step=step)

    @rank_zero_only
    def log_video(self, key: str, videos: Sequence[str], step: int | None = None) -> None:
        """Logs video files at an update."""
        import trackio

        self.experiment.log(_numbered(key, [trackio.Video(path) for path in videos]), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is not yet written."""
        if self._run is not None:
            self._run.finish()


def _numbered(key: str, items: Sequence[Any]) -> dict[str, Any]:
    """One entry a picture, since trackio takes one a key."""
    return {key: items[0]} if len(items) == 1 else {f"{key}/{index}": item for index, item in enumerate(items)}


class _ContinuedWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Takes over the columns that are there, where Lightning's removes the file."""
        file = Path(self.metrics_file_path)
        if file.is_file():
            with file.open(newline="") as lines:
                self.metrics_keys = next(csv.reader(lines), [])
