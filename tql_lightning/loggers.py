"""Loggers beside Lightning's."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from tql_lightning.data.files import write_whole


@runtime_checkable
class ContinuedLogger(Protocol):
    """A logger that is told at which update a run goes on."""

    def continue_from(self, update: int) -> None:
        """Takes back what a killed run logged after this update, which is done again."""


class ContinuedCSVLogger(CSVLogger):
    """Writes ``metrics.csv`` into a folder, after what an earlier part of the run wrote there.

    Lightning's own logger deletes the file when a run is resumed or validated. Rows of updates that a killed run did
    after its last checkpoint are removed when it is resumed: it does them again.

    Args:
        save_dir: folder of metrics.csv.
        flush_logs_every_n_steps: log calls between writes to the file; it is also written with every checkpoint.
    """

    def __init__(self, save_dir: str, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)
        self._unwritten = 0
        self._kept: dict[int, set[str]] = {}  # names by update, of what an earlier part of the run logged

    @rank_zero_only
    def continue_from(self, update: int) -> None:
        """Removes rows of later updates, and one that a kill cut short; see `ContinuedLogger`."""
        self.save()
        writer = self.experiment
        assert isinstance(writer, _ContinuedWriter)
        self._kept = writer.keep_until(update)

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


class ContinuedTensorBoardLogger(TensorBoardLogger):
    """Lightning's logger for TensorBoard; a continued run hides what was logged after the update that it goes on from.

    The events stay in their files: it is TensorBoard that leaves them out, also for who reads them with its
    ``EventAccumulator``.

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

    @rank_zero_only
    def continue_from(self, update: int) -> None:
        """Begins a file that says so; see `ContinuedLogger`."""
        self.experiment.close()
        self._experiment = None
        self._kwargs["purge_step"] = update + 1


class TrackioLogger(Logger):
    """Logs to trackio, on this machine, pictures included. Needs ``pip install trackio``.

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
    def finalize(self, status: str) -> None:
        """Writes what is not yet written."""
        if self._run is not None:
            self._run.finish()


def _numbered(key: str, items: Sequence[Any]) -> dict[str, Any]:
    """One entry a picture, since trackio takes one a key."""
    return {key: items[0]} if len(items) == 1 else {f"{key}/{index}": item for index, item in enumerate(items)}


class _ContinuedWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Takes over the columns that are there, where Lightning's removes the file; mends what a kill cut short."""
        file = Path(self.metrics_file_path)
        if not file.is_file():
            return
        content = file.read_bytes()
        if not content.endswith(b"\n"):
            with write_whole(file) as mended:
                mended.write(content[: content.rfind(b"\n") + 1])
        with file.open(newline="") as lines:
            self.metrics_keys = next(csv.reader(lines), [])
        if not self.metrics_keys:
            file.unlink()

    def keep_until(self, update: int) -> dict[int, set[str]]:
        """Removes rows of later updates; returns the names of what the others hold, by update."""
        kept: dict[int, set[str]] = {}
        if Path(self.metrics_file_path).is_file():
            rows = [row for row in self._rows() if int(float(row["step"])) <= update]
            self._write_whole(rows)
            for row in rows:
                kept.setdefault(int(float(row["step"])), set()).update(name for name, value in row.items() if value)
        return kept

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Lightning's, but a kill leaves the old file or the new one."""
        self._write_whole(self._rows())

    def _rows(self) -> list[dict[str, str]]:
        with Path(self.metrics_file_path).open(newline="") as lines:
            return list(csv.DictReader(lines))

    def _write_whole(self, rows: Sequence[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        with write_whole(Path(self.metrics_file_path)) as file:
            file.write(text.getvalue().encode())
