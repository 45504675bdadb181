"""Logs to trackio."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor


class TrackioLogger(Logger):
    """Logs metrics, pictures and videos to trackio on this machine. Needs ``pip install trackio``.

    Args:
        project: Name of the project; ``trackio show --project PROJECT`` shows it.
        name: Name of the run; null for a generated one.
        resume: Whether to continue a run of this name: "never", "allow" or "must".

    Examples:
        >>> TrackioLogger("tql", name="seed_0").version
        'seed_0'
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
        """Trackio's run, started at first use."""
        if self._run is None:
            import trackio

            self._run = trackio.init(self._project, self._run_name, resume=self._resume, embed=False)
            self._run_name = self._run.name
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Adds settings to the run's configuration."""
        settings = dict(vars(params) if isinstance(params, Namespace) else params)
        own = {name: str(value) for name, value in settings.items() if not name.startswith("_")}  # reserved by trackio
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
        """Finishes the run, which writes the rest."""
        if self._run is not None:
            self._run.finish()


def _numbered(key: str, items: Sequence[Any]) -> dict[str, Any]:
    """One key per item, since trackio takes one item per key."""
    return {key: items[0]} if len(items) == 1 else {f"{key}/{index}": item for index, item in enumerate(items)}
