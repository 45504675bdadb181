"""Plays evaluation episodes in the real environment while training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from tql_lightning.callbacks.background import (
    MOST_PENDING,
    BackgroundObserver,
    ends_unobserved,
    hears_signal,
    interrupted,
)
from tql_lightning.callbacks.best_checkpoint import best_checkpoints, refuse_late_monitors, refuse_unknown_monitors
from tql_lightning.callbacks.intervals import is_due, require_multiple
from tql_lightning.callbacks.observing import (
    check_env_of,
    environment_of,
    evaluation_mode,
    require_algorithm,
    saved_weights,
)
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.scores import mean_scores, scores_in
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.evaluation.background import EvaluationJob
from tql_lightning.evaluation.checkpoint import write_evaluation
from tql_lightning.evaluation.envs import EnvError, reports_success
from tql_lightning.evaluation.rollout import RolloutResult, join_shares, rollout
from tql_lightning.evaluation.watched_rollout import RolloutStoppedError, watch_rollout
from tql_lightning.run.baselines import DATASET, record_baseline
from tql_lightning.run.folder import evaluation_file, pending_files, writes_nothing
from tql_lightning.system.full_disk import training_goes_on
from tql_lightning.system.whole_numbers import whole
from tql_lightning.training.sharding import gathered
from tql_lightning.training.stock_callbacks import log_metrics

SUMMARISED = ("return", "length", "success_rate", "normalized_score")
SUFFIXES = ("", "_stderr", "_low", "_high")


class RolloutEvaluation(BackgroundObserver):
    """Evaluates the policy before the first update, every N updates, and after the last one.

    Logs ``eval/return``, ``eval/length``, ``eval/success_rate`` (if the environment reports success) and
    ``eval/normalized_score`` (if the dataset has reference scores), each with standard error and 95 % interval.
    Writes every evaluation to ``evaluations/`` in the run's folder. ``tql test`` logs the same under ``test/``. All
    evaluations have the same episodes and noise; processes share the episodes.

    An environment that raises, returns NaN, or exceeds ``timeout`` ends the evaluation with a warning. Training goes
    on, and ``eval/failures`` counts failed evaluations. A signal (see `GracefulInterrupt`) ends an evaluation at its
    next step, and a continued run repeats it.

    With ``background`` a low-priority process with one CPU thread evaluates a snapshot while training goes on. Results
    are logged at the update they belong to, when metrics are next logged. Training waits at its end, and while two
    evaluations are unfinished. A killed run's unfinished evaluations are made when it is continued. Use it with
    `BestCheckpoint`, which keeps the evaluated snapshot instead of the current weights.

    Args:
        episodes: Number of episodes.
        every_n_updates: Updates between evaluations, a multiple of the data's ``updates_per_step``.
        seed: Seed of the episodes.
        num_envs: Number of environments that run at once; it does not change the result.
        parallel: Whether each environment runs in a process of its own, for slow environments.
        env_id: Gymnasium id; null for the environment that the dataset names.
        extraction: How to choose actions; null for the model's own setting.
        background: Whether to evaluate in another process while training goes on.
        timeout: Seconds after which a step of the environments, or making them, counts as hung.
        max_episode_steps: Time limit of an episode; null for the one that the environment is registered with.

    Raises:
        ValueError: An argument is out of its range, no environment is known, or it does not fit the
            model and its data.

    Examples:
        >>> RolloutEvaluation(episodes=20, every_n_updates=5000, env_id="Pendulum-v1").episodes
        20
    """

    plural = "evaluations"
    logs = (
        *(f"eval/{name}{of}" for name in SUMMARISED for of in SUFFIXES),
        "eval/failures",
    )

    def __init__(
        self,
        episodes: int = 50,
        every_n_updates: int = 100_000,
        seed: int = 0,
        num_envs: int = 10,
        parallel: bool = False,
        env_id: str | None = None,
        extraction: str | None = None,
        background: bool = False,
        timeout: float = 300.0,
        max_episode_steps: int | None = None,
    ) -> None:
        super().__init__(timeout)
        self.episodes = whole("RolloutEvaluation.episodes", episodes, at_least=1)
        self.every_n_updates = whole("RolloutEvaluation.every_n_updates", every_n_updates, at_least=1)
        self.seed = whole("RolloutEvaluation.seed", seed)
        self.num_envs = whole("RolloutEvaluation.num_envs", num_envs, at_least=1)
        self.parallel = parallel
        self.env_id = env_id
        self.max_episode_steps = max_episode_steps
        self.extraction = extraction
        self.background = background
        self.result: RolloutResult | None = None
        self.failures = 0
        self._known = -1  # update of the last evaluation that ended, with a result or an error
        self._started = False
        self._reference_scores: tuple[float, float] | None = None

    def figures(self, dataset: TransitionDataset) -> Iterator[str]:
        """Names of the figures that evaluations of this dataset's environment have, without ``eval/``.

        The success rate counts where an environment cannot tell, because it fails.
        """
        env_id = str(self.env_id or dataset.env_id)
        for name in SUMMARISED:
            if name == "normalized_score":
                there = scores_in(env_id, dataset.env_id, dataset.reference_scores) is not None
            else:
                there = name != "success_rate" or reports_success(env_id, self.max_episode_steps) is not False
            if there:
                yield from (f"{name}{of}" for of in SUFFIXES)

    # ------------------------------------------------------------------ when

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks interval, environment and checkpoints before any training."""
        if stage == "fit":
            self._started = False
            require_multiple(trainer, "RolloutEvaluation.every_n_updates", self.every_n_updates)
            if self.background:
                refuse_late_monitors(trainer)
        self.env_id = environment_of(self, getattr(trainer, "datamodule", None), self.env_id)
        dataset = getattr(getattr(trainer, "datamodule", None), "dataset", None)
        own_env_id, scores = (getattr(dataset, name, None) for name in ("env_id", "reference_scores"))
        self._reference_scores = scores_in(self.env_id, own_env_id, scores)
        if trainer.is_global_zero:
            model = require_algorithm(self, pl_module)
            check_env_of(self, trainer, model, self.env_id, self.max_episode_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the initial policy; in a continued run, the evaluation that its first part left unfinished."""
        self._started = True
        if trainer.global_step == 0:
            if trainer.is_global_zero and not writes_nothing(trainer):
                self._record_dataset(trainer)
            self._evaluate(trainer, pl_module)
        else:
            self._catch_up(trainer, pl_module, trainer.global_step % self.every_n_updates == 0)

    def _record_dataset(self, trainer: Trainer) -> None:
        """Records the dataset's mean scores, which reports compare with, if its episodes are the environment's."""
        dataset = getattr(getattr(trainer, "datamodule", None), "dataset", None)
        if not isinstance(dataset, TransitionDataset) or dataset.env_id != self.env_id:
            return
        scores = mean_scores(dataset, self._reference_scores)
        folder = Path(trainer.default_root_dir)
        if scores is not None:
            with training_goes_on(folder):
                record_baseline(folder, DATASET, scores)

    def _catch_up(self, trainer: Trainer, pl_module: LightningModule, due: bool) -> None:
        folder, update = Path(trainer.default_root_dir), trainer.global_step
        left_out = due and self._known < update and not evaluation_file(folder, update).exists()
        pending = pending_files(folder) if self.background and trainer.is_global_zero else {}
        for before, path in pending.items():
            if before <= update:
                self._submit(before, path)
        if trainer.strategy.broadcast(left_out and update not in pending):
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluates at multiples of ``every_n_updates`` and after the run's last update."""
        if is_due(trainer, self.every_n_updates):
            self._evaluate(trainer, pl_module)
        elif outputs["log_now"]:
            self.log_finished(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates where a run ends between two evaluations."""
        if ends_unobserved(trainer, self.every_n_updates):
            self._evaluate(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes an evaluation that a complete run left out when it was stopped, and waits for unfinished ones."""
        if not self._started and trainer.global_step > 0:
            self._catch_up(trainer, pl_module, is_due(trainer, self.every_n_updates))
        super().on_fit_end(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates for ``tql test``, which a failed environment ends with an error."""
        result = self._play(trainer, pl_module)
        if isinstance(result, str):
            raise EnvError(result)
        if result is not None:
            for name, value in result.summary(self._reference_scores).items():
                pl_module.log(f"test/{name}", value, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of failed evaluations and the update of the last one that ended."""
        return {"failures": self.failures, "known": self._known}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.failures, self._known = int(state_dict["failures"]), int(state_dict.get("known", -1))

    # ------------------------------------------------------------------ what

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.background or writes_nothing(trainer):
            result = self._play(trainer, pl_module)
            if result is not None:
                self._log(trainer, trainer.global_step, result, None)
            return
        if interrupted(trainer):
            return
        snapshot, reason = self.save_snapshot(trainer, weights_only=not best_checkpoints(trainer))
        if reason is not None:
            self._log(trainer, trainer.global_step, reason, None)
        elif trainer.is_global_zero:
            self._submit(trainer.global_step, snapshot)
        self.log_finished(trainer, until_pending=MOST_PENDING)

    def _play(self, trainer: Trainer, pl_module: LightningModule) -> RolloutResult | str | None:
        """Plays this process's episodes now; returns the joint result, an error's text, or None after a signal."""
        model = require_algorithm(self, pl_module)
        play = partial(
            rollout,
            model.actor(self.extraction),
            str(self.env_id),
            trainer.world_size if writes_nothing(trainer) else self.episodes,
            self.seed,
            self.num_envs,
            self.parallel,
            model.device,
            next(model.parameters()).dtype,
            (trainer.global_rank, trainer.world_size),
            max_episode_steps=self.max_episode_steps,
        )
        own: RolloutResult | str | None
        # Processes play different numbers of steps, so no collective operation may happen within a rollout.
        with gathered(*model.trained_networks()), evaluation_mode(model), saved_weights(trainer, model):
            try:
                own = watch_rollout(play, self.timeout, partial(hears_signal, trainer))
            except RolloutStoppedError:
                own = None
            except EnvError as error:
                own = str(error)
        everyones = [
            trainer.strategy.broadcast(own if trainer.global_rank == process else None, src=process)
            for process in range(trainer.world_size)
        ]
        errors = [one for one in everyones if isinstance(one, str)]
        shares = [one for one in everyones if isinstance(one, RolloutResult)]
        if errors:
            return errors[0]
        return join_shares(shares) if len(shares) == len(everyones) else None

    def _submit(self, update: int, snapshot: Path) -> None:
        self.submit(
            EvaluationJob(
                update,
                str(snapshot),
                str(self.env_id),
                self.episodes,
                self.seed,
                self.num_envs,
                self.parallel,
                self.extraction,
                self.max_episode_steps,
            )
        )

    def log_finished(self, trainer: Trainer, until_pending: int | None = None) -> None:
        """Logs finished background evaluations."""
        if not self.background:
            return
        outcomes = [(each.job, each.result or str(each.error)) for each in self.finished(trainer, until_pending)]
        if trainer.world_size > 1:
            outcomes = trainer.strategy.broadcast(outcomes)
        for job, result in outcomes:
            self._log(trainer, job.update, result, Path(job.snapshot))
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.save()  # before the snapshot is deleted, so that a killed run has one of the two
                Path(job.snapshot).unlink(missing_ok=True)

    def _log(self, trainer: Trainer, update: int, result: RolloutResult | str, snapshot: Path | None) -> None:
        """Logs a result, or an error's text, at the update it belongs to; called on every process."""
        self._known = max(self._known, update)
        if isinstance(result, str):
            self.failures += 1
            if trainer.is_global_zero:
                warnings.warn(f"evaluation at update {update} failed, training goes on: {result}", stacklevel=2)
            scalars = {}
        else:
            self.result = result
            summary = result.summary(self._reference_scores)
            scalars = {f"eval/{name}": value for name, value in summary.items()}
            refuse_unknown_monitors(trainer, str(self.env_id), scalars)
            if trainer.is_global_zero and not writes_nothing(trainer):
                folder = Path(trainer.default_root_dir)
                with training_goes_on(evaluation_file(folder, update)):
                    write_evaluation(folder, update, str(self.env_id), self.seed, result, summary)
        data: Any = getattr(trainer, "datamodule", None)
        steps = data.env_steps(update) if isinstance(data, OfflineDataModule) and trainer.training else {}
        log_metrics(trainer, scalars | {"eval/failures": float(self.failures)} | steps, update)
        for checkpoint in best_checkpoints(trainer) if scalars and update > 0 and not writes_nothing(trainer) else ():
            checkpoint.consider(trainer, update, scalars, snapshot)
