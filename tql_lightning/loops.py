"""What Lightning's loops ask of the algorithm: chunks of updates, logging, held-out losses, loadable checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch._functorch import config as aot_config

from tql_lightning.batch import Batch, Noise
from tql_lightning.captured import CapturedStep, ReplayedAdamW, can_record, new_recorder
from tql_lightning.chunks import (
    ContinuedLogger,
    chunk_size,
    restore_progress,
    skip_validation_of_a_stop,
    validation_follows,
)
from tql_lightning.data.counter_random import seed_generators
from tql_lightning.divergence import DivergenceWatch, broken_metrics, count_broken, diverged, require_sound
from tql_lightning.held_out import HeldOutMeans
from tql_lightning.hyperparameters import loadable, require
from tql_lightning.nn.critic import Critic
from tql_lightning.out_of_memory import explained_memory
from tql_lightning.precision import refuse_narrow_weights
from tql_lightning.processes import (
    mean_over_processes,
    of_this_process,
    over_processes,
    prefer_static_graph,
)
from tql_lightning.sharding import ShardedStrategy, refuse_strategy, shard
from tql_lightning.shortcuts import CountedOptimizer, hears_backward, hears_step
from tql_lightning.signals import Unit

Losses = tuple[Tensor, Tensor | None, dict[str, Tensor]]  # total, attention entropy (L, 2) or None, scalars to log
MatmulPrecision = Literal["highest", "high", "medium"]
BROKEN = "broken_tensors"


class UpdateLoop(LightningModule, ABC):
    """An algorithm of updates with losses, as Lightning trains and validates it; K updates a step of the trainer.

    Args:
        compile: whether the losses of an update are compiled.
        cuda_graphs: whether an update is recorded once and replayed.
        float32_matmul_precision: of matrix products while a trainer runs.

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
        super().__init__()
        matmul, known = float32_matmul_precision, get_args(MatmulPrecision)
        require("float32_matmul_precision", matmul in known, "highest, high or medium", matmul)
        self.automatic_optimization = False
        self.compiled, self.cuda_graphs = compile, cuda_graphs
        self.float32_matmul_precision: MatmulPrecision = float32_matmul_precision
        self._precision_before = torch.get_float32_matmul_precision()
        self._captured: CapturedStep | None = None
        self._hears_backward = self._hears_step = True
        self._watch = DivergenceWatch()
        self._seen_updates = 0  # by the weights, while no trainer trains them
        self._validated = -1  # the update of the last validation
        self._held_out = HeldOutMeans()
        self.unit = Unit()

    def __setattr__(self, name: str, value: Any) -> None:
        """Leaves out torch's search for parameters where Lightning notes, ten times an update, which hook it is in."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @abstractmethod
    def update(self, batch: Batch, noise: Noise, with_metrics: bool = True) -> dict[str, Any]:
        """One update, with one call of `step`; returns what callbacks are given, see `training_step`."""

    @abstractmethod
    def gradient_step(
        self, batch: Batch, noise: Noise, target_entropy: Tensor | None, optimizer: Any, with_metrics: bool = True
    ) -> Losses:
        """What changes parameters: losses, gradients, the optimizer's step; it never waits for the device."""

    @abstractmethod
    def losses(
        self,
        batch: Batch,
        noise: Noise,
        target_entropy: Tensor | None,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = of_this_process,
    ) -> Losses:
        """The losses as a pure function of parameters and arguments."""

    @abstractmethod
    def clip_each_network(self) -> None:
        """Measures and clips gradients, where wanted; called before the optimizer's step."""

    @property
    @abstractmethod
    def target_entropy(self) -> Tensor | None:
        """Entropy targets at the current update, (L, 2), or None."""

    # ------------------------------------------------------------------ how an update runs

    def step(self, batch: Batch, noise: Noise, target_entropy: Tensor | None, with_metrics: bool) -> Losses:
        """`gradient_step`, or its recording replayed; counted by the trainer as one step either way."""
        optimizer: Any = self.optimizers()
        if not self._hears_step:
            optimizer = CountedOptimizer(optimizer.optimizer, self)
        if not self.cuda_graphs:
            return self.gradient_step(batch, noise, target_entropy, optimizer, with_metrics)
        if self._captured is None:
            self._captured = self._new_capture(optimizer.optimizer)
        optimizer.optimizer.replay = partial(self._captured, (*batch, *noise, target_entropy))
        with self.unit:
            total, entropy, metrics = optimizer.step()
        if not with_metrics:
            return total, entropy, {}
        # The next replay writes over what this one gave.
        return (
            total.clone(),
            None if entropy is None else entropy.clone(),
            {name: value.clone() for name, value in metrics.items()},
        )

    def _new_capture(self, optimizer: ReplayedAdamW) -> CapturedStep:
        fields = len(Batch._fields)

        def work(*tensors: Tensor) -> Losses:
            *parts, target_entropy = tensors
            batch, noise = Batch(*parts[:fields]), Noise(*parts[fields:])
            return self.gradient_step(batch, noise, target_entropy, optimizer)

        return CapturedStep(work, self, optimizer, new_recorder(self.device))

    def backward_pass(self, loss: Tensor) -> None:
        """Lightning's backward pass, plain where that is all it would come to; in the types of the forward pass."""
        # Else autocast, in which Lightning makes the whole step, would round also what the losses kept out of it.
        autocast = torch.is_autocast_enabled(self.device.type)
        with torch.autocast(self.device.type, enabled=False) if autocast else nullcontext():
            if self._hears_backward:
                self.manual_backward(loss)
            else:
                torch.autograd.backward(loss)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measures and clips gradients after any unscaling; a recorded step has done so itself."""
        if not self.cuda_graphs:
            self.clip_each_network()

    def training_losses(
        self, batch: Batch, noise: Noise, target_entropy: Tensor | None, with_metrics: bool = True
    ) -> Losses:
        """`losses` of this process's part of a batch, whose means are taken over all processes where that matters.

        Compiled where that is set: then always with what is logged, so that there is one graph.
        """
        if not self.compiled:
            return self.losses(batch, noise, target_entropy, with_metrics, mean_over_processes)
        total, entropy, metrics = self._compiled_losses(batch, noise, target_entropy)
        return total, entropy, metrics if with_metrics else {}

    @cached_property
    def _compiled_losses(self) -> Callable[[Batch, Noise, Tensor | None], Losses]:
        compiled = torch.compile(partial(self.losses, whole_mean=mean_over_processes), fullgraph=True, dynamic=False)

        known = hasattr(aot_config, "backward_pass_autocast")  # not to older torch
        without_autocast = {"backward_pass_autocast": "off"} if known else {}

        def run(batch: Batch, noise: Noise, target_entropy: Tensor | None) -> Losses:
            # The backward pass is compiled with it, and is not to be rounded by autocast either; see `backward_pass`.
            with aot_config.patch(without_autocast):
                outputs: Losses = compiled(batch, noise, target_entropy)
            return outputs

        return run

    def check_trainer(self, trainer: Trainer) -> None:
        """Refuses a trainer that cannot train this model.

        Raises:
            ValueError: see `precision.refuse_narrow_weights` and `sharding.refuse_strategy`.
        """
        refuse_narrow_weights(self, trainer)
        refuse_strategy(trainer, {"compile": self.compiled, "cuda_graphs": self.cuda_graphs})

    def configure_model(self) -> None:
        """Takes on the trainer's number type, and where the strategy is "sharded" only its share of the networks."""
        if self._trainer is None:
            return
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.check_trainer(self.trainer)
        # Before a checkpoint is loaded; Lightning would do so afterwards, and its float64 would have been rounded.
        self.trainer.precision_plugin.convert_module(self)
        if isinstance(self.trainer.strategy, ShardedStrategy):
            shard(self, self.trainer.strategy.device_mesh)

    def setup(self, stage: str) -> None:
        """Sets how exact float32 matrix products are while a trainer runs, and DDP for one graph."""
        prefer_static_graph(self.trainer.strategy)
        self._precision_before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.float32_matmul_precision)

    def teardown(self, stage: str) -> None:
        """Puts the precision of matrix products back, and frees what was recorded."""
        torch.set_float32_matmul_precision(self._precision_before)
        self._captured = None
        self.unit.give_back()

    def on_fit_start(self) -> None:
        """Looks who listens to backward passes and optimizer steps, and refuses to record where that cannot be.

        Raises:
            ValueError: ``cuda_graphs`` without a CUDA device, with several processes or with float16.
        """
        self._captured = None
        self._watch = DivergenceWatch()
        self._hears_backward = hears_backward(self.trainer, self)
        self._hears_step = hears_step(self.trainer, self, UpdateLoop)
        if not self.cuda_graphs:
            return
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not can_record(self.device) or self.trainer.world_size > 1 or scaled:
            raise ValueError(
                "model.cuda_graphs: expected one process on a CUDA device and no float16, found "
                f"{self.trainer.world_size} on {self.device.type} with precision {self.trainer.precision}; set it to "
                "false"
            )

    # ------------------------------------------------------------------ what a trainer calls

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
        first = self.global_step
        with explained_memory(self.critic, batches.rewards.shape[1], self.device):
            for k in range(num_updates):
                if seed is not None:  # what is drawn from torch's own generators, as by dropout
                    seed_generators(self.device, seed, self.global_step, self.global_rank)
                outputs = self.update(batches.update(k), noises.update(k), with_metrics=k == num_updates - 1)
                if self.trainer.should_stop:
                    break
        self._watch.keep(first, self.global_step, outputs["loss"])
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

    def on_train_start(self) -> None:
        """Tells loggers where a continued run goes on, and lets signals wait for the end of a `unit`."""
        self.unit.take_over()
        if self.global_step > 0:
            for logger in self.loggers:
                if isinstance(logger, ContinuedLogger):
                    logger.continue_from(self.global_step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A stop brings about no validation; after the callbacks, which may have asked for it."""
        skip_validation_of_a_stop(self.trainer)

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
        self.log_dict(scalars, logger=False if fits else None)
        for logger in self.loggers if fits and not self.trainer.sanity_checking else ():  # Lightning's counts chunks
            logger.log_metrics({name: float(value) for name, value in scalars.items()}, step=self.global_step)

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

    def on_train_end(self) -> None:
        """Keeps how many updates the weights have seen, and looks at them once more.

        Raises:
            TrainingDivergedError: they hold NaN or infinity.
        """
        self._seen_updates = self.global_step
        require_sound(self, self.trainer, self._watch)

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
