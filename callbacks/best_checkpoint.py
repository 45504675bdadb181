"""Keeps the weights of the best evaluation, in the foreground or background."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from tql_lightning.callbacks.saving import try_save
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import read_checkpoint
from tql_lightning.run.folder import evaluation_files, set_aside, writes_nothing
from tql_lightning.run.superseded import tell_set_aside
from tql_lightning.system.files import write_whole
from tql_lightning.system.full_disk import training_goes_on
from tql_lightning.trust.bounded import read_json

FALLBACK_METRIC = "eval/return"


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``, the weights of the evaluation with the highest success rate.

    `RolloutEvaluation` reports every evaluation except that of update 0. A background evaluation ends after training
    has moved on, so its snapshot is kept instead of the current weights.

    Args:
        dirpath: Folder of the checkpoint.
        monitor: Logged key to maximise; ``eval/return`` replaces it where an evaluation lacks it.

    Examples:
        >>> BestCheckpoint("runs/mine/checkpoints", monitor="eval/return").monitor
        'eval/return'
    """

    def __init__(self, dirpath: str | None = None, monitor: str = "eval/success_rate") -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode="max",
            every_n_train_steps=0,
            every_n_epochs=0,
            save_on_exception=False,
            enable_version_counter=False,
        )
        self._snapshot: Path | None = None
        self._taken_up = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets up without Lightning's warning that a continued run's folder is not empty."""
        self._taken_up = False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Checkpoint directory")
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the best so far, which may be newer than the checkpoint that the run continues from."""
        super().on_train_start(trainer, pl_module)
        self._take_up(trainer)

    def _take_up(self, trainer: Trainer) -> None:
        """Restores the best once per run; the next evaluation replaces one that is damaged, missing or too new."""
        if self._taken_up:
            return
        self._taken_up = True
        best = Path(self.dirpath or "") / "best.ckpt"
        if trainer.global_step == 0 or writes_nothing(trainer):
            return
        try:
            update = read_checkpoint(best, mmap=True)["global_step"]
        except CheckpointError as error:
            if best.is_file() or self.best_k_models:
                rank_zero_warn(f"{error}\nBestCheckpoint: the next evaluation's weights take its place")
            self._forget()
            return
        if update > trainer.global_step:  # the run continues from an earlier checkpoint
            self._forget()
            if trainer.is_global_zero:
                with training_goes_on(best):
                    set_aside(best)
                    tell_set_aside([best], trainer.global_step)
            return
        record = evaluation_files(Path(trainer.default_root_dir)).get(update)
        if record is not None:
            try:
                summary = read_json(record)["summary"]
                score = self._score({f"eval/{name}": float(value) for name, value in summary.items()})
            except (ValueError, OSError, KeyError, TypeError, AttributeError, OverflowError) as error:
                raise ValueError(
                    f"{record}: expected an evaluation of this run, found another file; remove it"
                ) from error
            self.best_k_models = {str(best): score}
            self.best_model_path = self.kth_best_model_path = str(best)
            self.best_model_score = self.kth_value = self.current_score = score

    def _forget(self) -> None:
        self.best_k_models = {}
        self.best_model_path = self.kth_best_model_path = ""
        self.best_model_score = self.current_score = None

    def consider(self, trainer: Trainer, update: int, metrics: dict[str, float], snapshot: Path | None) -> None:
        """Keeps an evaluation's weights if it is the best so far; warns if the write fails. Call it on every process.

        Args:
            trainer: Trainer of the run.
            update: Update of the evaluated weights.
            metrics: Metrics by logged key.
            snapshot: Checkpoint of the evaluated weights; None for the current weights.
        """
        self._take_up(trainer)
        self._snapshot = snapshot
        candidates = {self.monitor or "": self._score(metrics)}
        candidates |= {"step": torch.tensor(update), "epoch": torch.tensor(trainer.current_epoch)}
        reason = try_save(self, trainer, partial(self._save_topk_checkpoint, trainer, candidates))
        if reason is not None and trainer.is_global_zero:
            warnings.warn(f"the best evaluation so far, of update {update}, is not kept: {reason}", stacklevel=2)

    def _score(self, metrics: dict[str, float]) -> Tensor:
        return torch.tensor(metrics.get(self.monitor or "", metrics[FALLBACK_METRIC]))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Writes the current weights, or copies the snapshot."""
        if self._snapshot is None:
            super()._save_checkpoint(trainer, filepath)
            return
        if trainer.is_global_zero:
            with self._snapshot.open("rb") as source, write_whole(Path(filepath)) as target:
                shutil.copyfileobj(source, target)
            arguments: Any = self
            for logger in trainer.loggers:
                logger.after_save_checkpoint(arguments)
        trainer.strategy.barrier()


def best_checkpoints(trainer: Trainer) -> list[BestCheckpoint]:
    """Returns the trainer's callbacks of this class."""
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)]


def refuse_unknown_monitors(trainer: Trainer, env_id: str, scalars: Mapping[str, float]) -> None:
    """Rejects a monitor that this environment's evaluations do not have, once the first of them is known.

    Raises:
        ValueError: A callback other than `BestCheckpoint`, which falls back to another metric, has such a monitor.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None) or ""
        unknown = monitor.startswith("eval/") and monitor not in {*scalars, "eval/failures"}
        if unknown and not isinstance(callback, BestCheckpoint):
            raise ValueError(
                f"{type(callback).__name__}.monitor: expected a metric of evaluations in {env_id}, found "
                f"{monitor}; there are {', '.join(scalars)}"
            )


def refuse_late_monitors(trainer: Trainer) -> None:
    """Rejects other checkpoints by results of evaluations in the background.

    Raises:
        ValueError: A callback other than `BestCheckpoint` would keep other weights than those that were evaluated.
    """
    for callback in trainer.checkpoint_callbacks:
        monitor = getattr(callback, "monitor", None) or ""
        if monitor.startswith("eval/") and not isinstance(callback, BestCheckpoint):
            raise ValueError(
                f"RolloutEvaluation.background: {type(callback).__name__} with monitor {monitor} would keep the "
                "weights at hand when a result arrives, not those that were evaluated; use "
                "tql_lightning.callbacks.best_checkpoint.BestCheckpoint"
            )
