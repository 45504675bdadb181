"""What Lightning's loops ask of the algorithm: chunks of updates, logging, held-out losses, loadable checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from tql_lightning.batch import Batch, Noise
from tql_lightning.data.counter_random import seed_generators
from tql_lightning.nn.critic import Critic
from tql_lightning.run.superseded import take_back
from tql_lightning.training.chunks import chunk_size, restore_progress, skip_validation_of_a_stop, validation_follows
from tql_lightning.training.distributed import over_processes
from tql_lightning.training.divergence import DivergenceWatch, broken_metrics, count_broken, diverged, require_sound
from tql_lightning.training.held_out import HeldOutMeans
from tql_lightning.training.hyperparameters import loadable
from tql_lightning.training.out_of_memory import explained_memory
from tql_lightning.training.update import MatmulPrecision, UpdateStep

BROKEN = "broken_tensors"


class UpdateLoop(UpdateStep):
    """An `UpdateStep` as Lightning trains and validates it: K updates a step of the trainer's loop.

    Args:
        compile: see `UpdateStep`.
        cuda_graphs: see `UpdateStep`.
        float32_matmul_precision: see `UpdateStep`.

    Raises:
        ValueError: there is no such precision.
    """

    critic: Critic

    def __init__(
        self,
        compile: bool,  # noqa: A002
        cuda_graphs: bool,
        float32_matmul_precision: MatmulPrecision,
    ) -> None:
        super().__init__(compile, cuda_graphs, float32_matmul_precision)
        self._watch = DivergenceWatch()
        self._seen_updates = 0  # by the weights, while no trainer trains them
        self._validated = -1  # the update of the last validation
        self._held_out = HeldOutMeans()

    @abstractmethod
    def update(self, batch: Batch, noise: Noise, with_metrics: bool = True) -> dict[str, Any]:
        """One update, with one call of `step`; returns what callbacks are given, see `training_step`."""

    @property
    @abstractmethod
    def target_entropy(self) -> Tensor | None:
        """Entropy targets at the current update, (L, 2), or None."""

    # ------------------------------------------------------------------ training

    def on_fit_start(self) -> None:
        """Watches a new fit from its beginning; see `UpdateStep` for the rest."""
        self._watch = DivergenceWatch()
        super().on_fit_start()

    def on_train_start(self) -> None:
        """Takes back what a continued run made past the update that it goes on from."""
        super().on_train_start()
        if self.global_step > 0:
            take_back(self.trainer, self.global_step)

    def training_step(self, chunk: tuple[Batch, Noise], batch_idx: int) -> dict[str, Any]:
        """K updates on a chunk of K minibatches; stops between two of them when the trainer is to stop.

        Args:
            chunk: batches and noise with leading dimensions (K, B).
            batch_idx: number of the chunk.

        Returns:
            For callbacks, of the last update and without gradient: "loss", "metrics" (name -> scalar; empty
            if the chunk was cut short), "attention_entropy", "temperature", "target_entropy" (L, 2), or None
            where there is no such thing, and "log_now", whether this update's metrics are written.

        Raises:
            TooLittleMemoryError: an update needs more memory than there is.
            TrainingDivergedError: see `write_metrics`.
        """
        batches, noises = chunk
        num_updates = len(batches.rewards)
        begun = self.global_step - self.global_step % chunk_size(self.trainer)  # also if a stop cut the chunk in two
        seed = getattr(self.trainer.datamodule, "seed", None)  # type: ignore[attr-defined]
        first, rank = self.global_step, self.global_rank
        with explained_memory(self.critic, batches.rewards.shape[1], self.device, self.cuda_graphs):
            for k in range(num_updates):
                if seed is not None:  # what is drawn from torch's own generators, as by dropout
                    seed_generators(self.device, seed, first + k, rank)
                last = k == num_updates - 1
                outputs = self.update(batches.update(k), noises.update(k), with_metrics=last)
                if last or not self.cuda_graphs:  # the next replay writes over what one without metrics gave
                    self._watch.keep(first + k, outputs["loss"])
                if self.trainer.should_stop:
                    break
        outputs["log_now"] = bool(outputs["metrics"]) and self.crosses_log_interval(begun)
        if outputs["log_now"]:
            self.write_metrics(outputs["metrics"])
        return outputs

    def crosses_log_interval(self, first_update: int) -> bool:
        """Whether a multiple of the trainer's ``log_every_n_steps``, counted in updates, was passed."""
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return interval > 0 and self.global_step // interval > first_update // interval

    def write_metrics(self, metrics: dict[str, Tensor]) -> None:
        """Writes an update's metrics, of the whole batch over all processes, and learning rates to the loggers.

        Raises:
            TrainingDivergedError: a metric, a parameter or the optimizer's state is NaN or infinite.
        """
        averaged = over_processes(metrics | {BROKEN: count_broken(self, self.trainer)})
        broken_tensors = averaged.pop(BROKEN)
        scalars = {f"train/{name}": value for name, value in averaged.items()}
        for group in self.optimizers().optimizer.param_groups:  # type: ignore[union-attr]
            if not group["name"].endswith("no_decay"):
                scalars[f"train/learning_rate/{group['name']}"] = float(group["lr"])
        for logger in self.loggers:
            logger.log_metrics(scalars, step=self.global_step)
        broken = broken_metrics(scalars, self.trainer)
        if broken or broken_tensors:
            raise diverged(self, self.trainer, self._watch, broken)
        self._watch.passed(self.global_step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A stop brings about no validation; after the callbacks, which may have asked for it."""
        skip_validation_of_a_stop(self.trainer)

    def on_train_end(self) -> None:
        """Keeps how many updates the weights have seen, and looks at them once more.

        Raises:
            TrainingDivergedError: they hold NaN or infinity.
        """
        self._seen_updates = self.global_step
        require_sound(self, self.trainer, self._watch)

    # ------------------------------------------------------------------ held-out transitions

    def validation_step(self, batch_and_noise: tuple[Batch, Noise], batch_idx: int) -> None:
        """Losses on held-out transitions; leading dimension (B,)."""
        self._add_held_out(*batch_and_noise, first=batch_idx == 0)

    def test_step(self, batch_and_noise: tuple[Batch, Noise], batch_idx: int) -> None:
        """Losses on held-out transitions; leading dimension (B,)."""
        self._add_held_out(*batch_and_noise, first=batch_idx == 0)

    def on_validation_epoch_end(self) -> None:
        """Logs their means over transitions as ``val/...``, but for a pass that only a stop has brought about."""
        fits = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if fits and not validation_follows(self.trainer):  # a signal came too late for `on_train_batch_end`
            return
        self._log_held_out("val")
        if fits:
            self._validated = self.global_step

    def on_test_epoch_end(self) -> None:
        """Logs their means over transitions as ``test/...``."""
        self._log_held_out("test")

    def _add_held_out(self, batch: Batch, noise: Noise, first: bool) -> None:
        if first:  # the pass before may have been broken off
            self._held_out = HeldOutMeans()
        _, entropy, metrics = self.losses(batch, noise, self.target_entropy)
        self._held_out.add(len(batch.rewards), metrics, entropy)

    def _log_held_out(self, stage: str) -> None:
        taken = self._held_out.take()
        if not taken:
            return
        scalars: dict[str, Any] = {f"{stage}/{name}": value for name, value in taken.items()}
        fits = self.trainer.state.fn == TrainerFn.FITTING
        if not fits:  # Lightning writes and prints them, at this step
            scalars["step"] = torch.tensor(self.current_update, dtype=torch.float64)
        self.log_dict(scalars, logger=False if fits else None, sync_dist=True)
        for logger in self.loggers if fits and not self.trainer.sanity_checking else ():  # Lightning's counts chunks
            logger.log_metrics({name: float(value) for name, value in scalars.items()}, step=self.global_step)

    # ------------------------------------------------------------------ checkpoints

    @property
    def current_update(self) -> int:
        """Updates that the weights have seen: also for a trainer that only validates or tests, which counts none."""
        trains = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        return self.global_step if trains else self._seen_updates

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over how many updates the checkpoint's weights have seen, and how far the loops were with them."""
        self._seen_updates = int(checkpoint.get("global_step", 0))
        self._validated = int(checkpoint.get("validated_update", self._seen_updates))
        if self._trainer is not None:
            restore_progress(self.trainer, checkpoint, self._validated == self._seen_updates)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes how critic, policy and entropy control are made as class path and arguments.

        Then ``TQL.load_from_checkpoint(path)`` needs no arguments and no pickle, however the model was made; a
        factory that is neither a class nor a ``functools.partial`` of one has to be given again on loading.

        Raises:
            TrainingDivergedError: what is to be saved holds NaN or infinity; nothing is written.
        """
        trainer = self._trainer  # None where a model is saved that never trained
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            require_sound(self, trainer, self._watch)
        checkpoint["hyper_parameters"] = loadable(checkpoint["hyper_parameters"])
        checkpoint["validated_update"] = self._validated
