"""What Lightning's loops ask of the algorithm: chunks of updates, logging, held-out losses, loadable checkpoints."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from tql_lightning.batch import Batch, Noise
from tql_lightning.hyperparameters import loadable
from tql_lightning.nn.temperature import TOKEN_GROUPS


class TrainingDivergedError(ValueError):
    """A loss or another metric of an update is NaN or infinite."""


class UpdateLoop(LightningModule, ABC):
    """An algorithm of updates with losses, as Lightning trains and validates it; K updates a step of the trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._seen_updates = 0  # by the weights, while no trainer trains them

    @abstractmethod
    def update(self, batch: Batch, noise: Noise, with_metrics: bool = True) -> dict[str, Any]:
        """One update, with one optimizer step; returns what callbacks are given, see `training_step`."""

    @abstractmethod
    def losses(
        self, batch: Batch, noise: Noise, with_metrics: bool = True
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """The total loss, the attention entropy (L, 2) or None, and detached scalars to log."""

    def training_step(self, chunk: tuple[Batch, Noise], batch_idx: int) -> dict[str, Any]:
        """K updates on a chunk of K minibatches; stops between two of them when the trainer is to stop.

        Args:
            chunk: batches and noise with leading dimensions (K, B).
            batch_idx: number of the chunk.

        Returns:
            For callbacks, of the last update and without gradient: "loss", "metrics" (name -> scalar; empty
            if the chunk was cut short), "attention_entropy", "temperature", "target_entropy" (L, 2), or None
            where there is no such thing, and "log_now", whether this update's metrics are written.
        """
        batches, noises = chunk
        num_updates = len(batches.rewards)
        first = self.global_step
        for k in range(num_updates):
            outputs = self.update(batches.update(k), noises.update(k), with_metrics=k == num_updates - 1)
            if self.trainer.should_stop:
                break
        outputs["log_now"] = bool(outputs["metrics"]) and self.crosses_log_interval(first)
        if outputs["log_now"]:
            self.write_metrics(outputs["metrics"])
        return outputs

    def crosses_log_interval(self, first_update: int) -> bool:
        """Whether a multiple of the trainer's ``log_every_n_steps``, counted in updates, was passed."""
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return interval > 0 and self.global_step // interval > first_update // interval

    def write_metrics(self, metrics: dict[str, Tensor]) -> None:
        """Writes an update's metrics and learning rates to the loggers, averaged over the processes.

        Raises:
            TrainingDivergedError: a metric is NaN or infinite.
        """
        values = torch.stack([value.float() for value in metrics.values()])
        averaged = self.trainer.strategy.reduce(values, reduce_op="mean").tolist()
        scalars = {f"train/{name}": value for name, value in zip(metrics, averaged, strict=True)}
        for group in self.optimizers().optimizer.param_groups:  # type: ignore[union-attr]
            if not group["name"].endswith("no_decay"):
                scalars[f"train/learning_rate/{group['name']}"] = float(group["lr"])
        for logger in self.loggers:
            logger.log_metrics(scalars, step=self.global_step)
        broken = [name for name, value in scalars.items() if not math.isfinite(value)]
        if broken:
            raise TrainingDivergedError(
                f"training diverged: after update {self.global_step} these are not finite: {', '.join(broken)}; lower "
                "the learning rates or set model.gradient_clip_norm, and start again or from an earlier checkpoint"
            )

    def validation_step(self, batch_and_noise: tuple[Batch, Noise], batch_idx: int) -> None:
        """Logs the losses on held-out transitions as ``val/...``; leading dimension (B,)."""
        self._log_held_out("val", *batch_and_noise)

    def test_step(self, batch_and_noise: tuple[Batch, Noise], batch_idx: int) -> None:
        """Logs the losses on held-out transitions as ``test/...``; leading dimension (B,)."""
        self._log_held_out("test", *batch_and_noise)

    def _log_held_out(self, stage: str, batch: Batch, noise: Noise) -> None:
        _, entropy, metrics = self.losses(batch, noise)
        if entropy is not None:
            for layer, row in enumerate(entropy):
                for group, value in zip(TOKEN_GROUPS, row, strict=True):
                    metrics[f"attention_entropy/layer_{layer}/{group}"] = value
        scalars = {f"{stage}/{name}": value for name, value in metrics.items()}
        self.log_dict(scalars, batch_size=len(batch.rewards), sync_dist=True)

    @property
    def current_update(self) -> int:
        """Updates that the weights have seen: also for a trainer that only validates or tests, which counts none."""
        trains = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        return self.global_step if trains else self._seen_updates

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over how many updates the checkpoint's weights have seen."""
        self._seen_updates = int(checkpoint.get("global_step", 0))

    def on_train_end(self) -> None:
        """Keeps how many updates the weights have seen."""
        self._seen_updates = self.global_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes how critic, policy and entropy control are made as class path and arguments.

        Then ``TQL.load_from_checkpoint(path)`` needs no arguments and no pickle, however the model was made; a
        factory that is neither a class nor a ``functools.partial`` of one has to be given again on loading.
        """
        checkpoint["hyper_parameters"] = loadable(checkpoint["hyper_parameters"])
