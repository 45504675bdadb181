"""Records videos of the policy during training."""

from __future__ import annotations

import warnings
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from tql_lightning.callbacks.background import MOST_PENDING, BackgroundObserver, ends_unobserved, interrupted
from tql_lightning.callbacks.intervals import is_due, require_multiple
from tql_lightning.callbacks.observing import check_env_of, environment_of, require_algorithm
from tql_lightning.evaluation.background import FilmJob
from tql_lightning.evaluation.videos import missing_packages
from tql_lightning.loggers.media import log_video
from tql_lightning.run.folder import VIDEO_FOLDER, pending_files, writes_nothing
from tql_lightning.system.whole_numbers import whole


class EpisodeVideos(BackgroundObserver):
    """Films the first episodes of an evaluation before the first update, every N updates, and after the last one.

    These are the episodes that `RolloutEvaluation` plays first with the same seed. A low-priority process with one CPU
    thread films a snapshot of the policy while training goes on. Training waits at its end, and while two snapshots are
    unfinished. Videos (MP4) go to ``videos/`` in the run's folder and to the loggers that can show them.

    Filming needs ``pip install tql-lightning[video]``, and without a display EGL or OSMesa (see `evaluation.videos`).
    The first failure causes a warning, and training goes on.

    Args:
        episodes: Number of episodes to film each time.
        every_n_updates: Updates between films, a multiple of the data's ``updates_per_step``.
        seed: Seed of the episodes.
        env_id: Gymnasium id; null for the environment that the dataset names.
        extraction: How to choose actions; null for the model's own setting.
        timeout: Seconds after which a step of the environment counts as hung.
        max_episode_steps: Time limit of an episode; null for the one that the environment is registered with.

    Raises:
        ValueError: An argument is out of its range, no environment is known, or it does not fit the
            model and its data.

    Examples:
        >>> EpisodeVideos(every_n_updates=5000, env_id="Pendulum-v1").env_id
        'Pendulum-v1'
    """

    plural = "videos"
    kind = VIDEO_FOLDER

    def __init__(
        self,
        episodes: int = 1,
        every_n_updates: int = 100_000,
        seed: int = 0,
        env_id: str | None = None,
        extraction: str | None = None,
        timeout: float = 300.0,
        max_episode_steps: int | None = None,
    ) -> None:
        super().__init__(timeout)
        self.episodes = whole("EpisodeVideos.episodes", episodes, at_least=1)
        self.every_n_updates = whole("EpisodeVideos.every_n_updates", every_n_updates, at_least=1)
        self.seed = whole("EpisodeVideos.seed", seed)
        self.env_id = env_id
        self.max_episode_steps = max_episode_steps
        self.extraction: str | None = extraction
        self._warned = self._disabled = self._started = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks interval and environment before any training."""
        if stage != "fit":
            return
        self._started = False
        require_multiple(trainer, "EpisodeVideos.every_n_updates", self.every_n_updates)
        self.env_id = environment_of(self, getattr(trainer, "datamodule", None), self.env_id)
        if trainer.is_global_zero:
            model = require_algorithm(self, pl_module)
            check_env_of(self, trainer, model, self.env_id, self.max_episode_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Films the initial policy; in a continued run, the snapshots that its first part left unfilmed."""
        self._started = True
        self._begin(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Films where a run ends between two films."""
        if not self._disabled and ends_unobserved(trainer, self.every_n_updates):
            self._film(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Films what a complete run left out when it was stopped, and waits for unfinished films."""
        if not self._started and trainer.global_step > 0:
            self._begin(trainer)
        super().on_fit_end(trainer, pl_module)

    def _begin(self, trainer: Trainer) -> None:
        if writes_nothing(trainer):
            self._disabled = True
            return
        missing = missing_packages()
        if missing and trainer.is_global_zero:
            self._warn(f"they need {' and '.join(missing)}: pip install tql-lightning[video]")
        self._disabled = bool(trainer.strategy.broadcast(missing))
        if self._disabled:
            return
        if trainer.global_step == 0:
            self._film(trainer)
        elif trainer.is_global_zero:
            for update, snapshot in pending_files(Path(trainer.default_root_dir), VIDEO_FOLDER).items():
                if update <= trainer.global_step:
                    self._submit(trainer, update, snapshot)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Films at multiples of ``every_n_updates`` and after the run's last update."""
        if self._disabled:
            return
        if is_due(trainer, self.every_n_updates):
            self._film(trainer)
        elif outputs["log_now"]:
            self.log_finished(trainer)

    def log_finished(self, trainer: Trainer, until_pending: int | None = None) -> None:
        """Logs finished films."""
        for outcome in self.finished(trainer, until_pending):
            update, error = outcome.job.update, outcome.error
            try:
                for episode, path in enumerate(outcome.result or ()):
                    log_video(trainer.loggers, f"{VIDEO_FOLDER}/episode_{episode}", path, update)
            except (OSError, RuntimeError, SubprocessError) as refused:  # raised by a logger or by ffmpeg
                error = f"logging it failed: {refused}"
            if error is not None:
                self._warn(f"at update {update}: {error}")
            Path(outcome.job.snapshot).unlink(missing_ok=True)

    def _film(self, trainer: Trainer) -> None:
        if interrupted(trainer):
            return
        snapshot, reason = self.save_snapshot(trainer)
        if reason is not None and trainer.is_global_zero:
            self._warn(reason)
        elif trainer.is_global_zero:
            self._submit(trainer, trainer.global_step, snapshot)
        self.log_finished(trainer, until_pending=MOST_PENDING)

    def _submit(self, trainer: Trainer, update: int, snapshot: Path) -> None:
        folder = str(Path(trainer.default_root_dir) / VIDEO_FOLDER)
        job = FilmJob(
            update,
            str(snapshot),
            str(self.env_id),
            self.episodes,
            self.seed,
            self.extraction,
            folder,
            self.max_episode_steps,
        )
        self.submit(job)

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"no videos, training goes on (further failures are not told): {reason}", stacklevel=2)
