"""How the step of an update runs: plain, compiled or replayed, in a number type, whole or in shares of the weights."""

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
from tql_lightning.system.signals import SignalGuard
from tql_lightning.training.cuda_graph import GraphedStep, ReplayedAdamW, can_record, new_recorder
from tql_lightning.training.distributed import identity, mean_over_processes, prefer_static_graph
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.sharding import ShardedStrategy, shard
from tql_lightning.training.skipped_hooks import CountedOptimizer, hears_backward, hears_step
from tql_lightning.training.trainer_checks import refuse_narrow_weights, refuse_strategy

Losses = tuple[Tensor, Tensor | None, dict[str, Tensor]]  # total, attention entropy (L, 2) or None, scalars to log
MatmulPrecision = Literal["highest", "high", "medium"]


class UpdateStep(LightningModule, ABC):
    """An algorithm's gradient step on its losses, made as settings and trainer ask and counted as one step.

    Args:
        compile: whether the losses of an update are compiled.
        cuda_graphs: whether an update is recorded once and replayed.
        float32_matmul_precision: of matrix products while a trainer runs.

    Raises:
        ValueError: there is no such precision.
    """

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
        self._captured: GraphedStep | None = None
        self._hears_backward = self._hears_step = True
        self.signal_guard = SignalGuard()

    def __setattr__(self, name: str, value: Any) -> None:
        """Leaves out torch's search for parameters where Lightning notes, ten times an update, which hook it is in."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

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
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """The losses as a pure function of parameters and arguments."""

    @abstractmethod
    def clip_each_network(self) -> None:
        """Measures and clips gradients, where wanted; called before the optimizer's step."""

    # ------------------------------------------------------------------ the step

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
        with self.signal_guard:
            total, entropy, metrics = optimizer.step()
        if not with_metrics:
            return total, entropy, {}
        # The next replay writes over what this one gave.
        return (
            total.clone(),
            None if entropy is None else entropy.clone(),
            {name: value.clone() for name, value in metrics.items()},
        )

    def _new_capture(self, optimizer: ReplayedAdamW) -> GraphedStep:
        fields = len(Batch._fields)

        def work(*tensors: Tensor) -> Losses:
            *parts, target_entropy = tensors
            batch, noise = Batch(*parts[:fields]), Noise(*parts[fields:])
            return self.gradient_step(batch, noise, target_entropy, optimizer)

        return GraphedStep(work, self, optimizer, new_recorder(self.device))

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

    # ------------------------------------------------------------------ what a trainer brings along

    def check_trainer(self, trainer: Trainer) -> None:
        """Refuses a trainer that cannot train this model.

        Raises:
            ValueError: it clips or accumulates gradients itself; ``cuda_graphs`` without a CUDA device, with several
                processes or with float16; or see `refuse_narrow_weights` and `refuse_strategy`.
        """
        if trainer.gradient_clip_val:
            raise ValueError(
                f"trainer.gradient_clip_val: expected none, found {trainer.gradient_clip_val}; set "
                "model.gradient_clip_norm, which clips each network on its own"
            )
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches: expected 1, found {trainer.accumulate_grad_batches}; set "
                "data.batch_size, which is the whole batch of an update"
            )
        refuse_narrow_weights(self, trainer)
        refuse_strategy(trainer, {"compile": self.compiled, "cuda_graphs": self.cuda_graphs})
        device, scaled = trainer.strategy.root_device, getattr(trainer.precision_plugin, "scaler", None) is not None
        if self.cuda_graphs and (not can_record(device) or trainer.world_size > 1 or scaled):
            raise ValueError(
                "model.cuda_graphs: expected one process on a CUDA device and no float16, found "
                f"{trainer.world_size} on {device.type} with precision {trainer.precision}; set it to false"
            )

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
        self.signal_guard.give_back()

    def on_fit_start(self) -> None:
        """Looks who listens to backward passes and optimizer steps."""
        self._captured = None
        self._hears_backward = hears_backward(self.trainer, self)
        self._hears_step = hears_step(self.trainer, self, UpdateStep)

    def on_train_start(self) -> None:
        """Lets signals wait for the end of a `unit`."""
        self.signal_guard.take_over()
