"""Plays evaluation episodes in the real environment while training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tql_lightning.callbacks.intervals import require_multiple
from tql_lightning.envs import check_sizes
from tql_lightning.extraction import Extraction
from tql_lightning.rollout import RolloutResult, rollout
from tql_lightning.tql import TQL


class RolloutEvaluation(Callback):
    """Evaluates the policy before the first update, every N updates, and after the last one.

    Logs ``eval/return``, ``eval/length``, ``eval/success_rate`` (where the environment reports success) and
    the standard error of each (``eval/return_stderr``); ``tql test`` logs the same under ``test/``. The
    episodes and their noise are the same at every evaluation.

    Args:
        episodes: episodes of an evaluation.
        every_n_updates: updates between evaluations; a multiple of the data's ``updates_per_step``.
        seed: of the episodes.
        num_envs: environments that play at once; no influence on the result.
        parallel: a process for each environment, for slow environments.
        env_id: Gymnasium id; null for the environment that the dataset names.
        extraction: how actions are chosen; null for the model's own setting.

    Raises:
        ValueError: an argument is out of its range, no environment is known, or its sizes are not the model's.
    """

    def __init__(
        self,
        episodes: int = 50,
        every_n_updates: int = 100_000,
        seed: int = 0,
        num_envs: int = 10,
        parallel: bool = False,
        env_id: str | None = None,
        extraction: Extraction | None = None,
    ) -> None:
        for name, value in (("episodes", episodes), ("every_n_updates", every_n_updates), ("num_envs", num_envs)):
            if value < 1:
                raise ValueError(f"RolloutEvaluation.{name}: expected at least 1, found {value}")
        self.episodes = episodes
        self.every_n_updates = every_n_updates
        self.seed = seed
        self.num_envs = num_envs
        self.parallel = parallel
        self.env_id = env_id
        self.extraction: Extraction | None = extraction
        self.result: RolloutResult | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks interval and environment before any training."""
        if stage == "fit":
            require_multiple(trainer, "RolloutEvaluation.every_n_updates", self.every_n_updates)
        datamodule: Any = getattr(trainer, "datamodule", None)
        self.env_id = self.env_id or getattr(datamodule, "env_id", None)
        if self.env_id is None:
            raise ValueError(
                "RolloutEvaluation.env_id: the dataset names no environment; give its Gymnasium id, or leave "
                "this callback out"
            )
        if trainer.is_global_zero:
            check_sizes(self.env_id, _tql(pl_module).observation_dim, _tql(pl_module).env_action_dim)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the policy as it was initialised, not when a run is resumed."""
        if trainer.global_step == 0:
            self._evaluate(trainer, pl_module, "eval")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluates at multiples of ``every_n_updates`` and after the run's last update."""
        last = 0 <= trainer.max_steps <= trainer.global_step
        if trainer.global_step % self.every_n_updates and not last:
            return
        for name, value in self._evaluate(trainer, pl_module, "eval").items():
            pl_module.log(name, value, logger=False, on_step=True, on_epoch=False, rank_zero_only=False)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates for ``tql test``."""
        for name, value in self._evaluate(trainer, pl_module, "test", to_loggers=False).items():
            pl_module.log(name, value)

    def _evaluate(
        self, trainer: Trainer, pl_module: LightningModule, prefix: str, to_loggers: bool = True
    ) -> dict[str, float]:
        """Summary by logged key, the same on every process; the first process plays."""
        scalars: dict[str, float] = {}
        if trainer.is_global_zero:
            model = _tql(pl_module)
            modes = {module: module.training for module in model.modules()}
            model.eval()
            try:
                self.result = rollout(
                    model.actor(self.extraction),
                    str(self.env_id),
                    self.episodes,
                    self.seed,
                    self.num_envs,
                    self.parallel,
                    model.device,
                    next(model.parameters()).dtype,
                )
            finally:
                for module, training in modes.items():
                    module.training = training
            scalars = {f"{prefix}/{name}": value for name, value in self.result.summary().items()}
            for logger in trainer.loggers if to_loggers else ():
                logger.log_metrics(scalars, step=trainer.global_step)
        return dict(trainer.strategy.broadcast(scalars))


def _tql(pl_module: LightningModule) -> TQL:
    if not isinstance(pl_module, TQL):
        raise ValueError(f"RolloutEvaluation: expected a TQL model, found {type(pl_module).__name__}")
    return pl_module
