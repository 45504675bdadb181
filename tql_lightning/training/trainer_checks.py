"""Rejects trainer settings that cannot train an algorithm, before training starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning.pytorch.strategies import ModelParallelStrategy

from tql_lightning.system.private_api import checks_at_ends_of_epochs, epochs_between, start_method
from tql_lightning.training.chunks import chunk_size
from tql_lightning.training.cuda_graph import can_record
from tql_lightning.training.execution import Execution
from tql_lightning.training.sharding import NAME, ShardedStrategy

BATCH_SIZE = "set data.batch_size, which is the whole batch of an update"
RATES = "set model.optimisation.learning_rate and its schedule"
# Lightning's callbacks that would do nothing, fail within training, or train something else than the paper's method.
REFUSED_CALLBACKS = {
    BaseFinetuning: "it moves parameters between groups of the optimizer; call requires_grad_(False) in a subclass of "
    "the algorithm",
    BasePredictionWriter: "it writes what `predict` returns, and there is no `predict`; tql evaluate plays a policy",
    BatchSizeFinder: f"the batch size is part of the method; {BATCH_SIZE}",
    GradientAccumulationScheduler: f"every update steps the optimizer; {BATCH_SIZE}",
    LearningRateFinder: f"networks have learning rates of their own; {RATES}",
    ModelPruning: "it replaces parameters that the optimizer and target networks hold; prune an exported policy",
    SpikeDetection: "a run with it cannot be continued, since its `load_state_dict` asks for an attribute that it does "
    "not have; training stops by itself at losses that are not finite",
    StochasticWeightAveraging: "it replaces the schedule of the learning rates, and averages once an epoch, of which a "
    "run has one; use EMAWeightAveraging",
}
NARROW = (torch.bfloat16, torch.float16)


def check_trainer(trainer: Trainer, model: LightningModule, execution: Execution) -> None:
    """Rejects a trainer that cannot train an algorithm.

    Args:
        trainer: Trainer of a fit.
        model: Algorithm to train.
        execution: Execution settings of the algorithm.

    Raises:
        ValueError: The trainer clips or accumulates gradients, or counts batches in shares of an epoch;
            ``limit_train_batches`` is 0 or ``val_check_interval`` a time; ``cuda_graphs`` is set without a CUDA
            device, with several processes or with float16; or `refuse_callbacks`, `refuse_epochs`,
            `refuse_narrow_weights` or `refuse_strategy` rejects it.
    """
    refuse_callbacks(trainer)
    if trainer.limit_train_batches == 0:
        raise ValueError("trainer.limit_train_batches: expected at least 1, found 0, which trains nothing")
    if not hasattr(trainer, "val_check_interval"):  # Lightning sets it unless it is a time
        raise ValueError(
            "trainer.val_check_interval: expected a whole number of updates, found a time, after which a continued run "
            "would validate elsewhere; give updates"
        )
    refuse_epochs(trainer)
    for name in ("limit_train_batches", "val_check_interval"):
        value = getattr(trainer, name)
        if isinstance(value, float) and value != 1.0:
            raise ValueError(
                f"trainer.{name}: expected a whole number of updates, or 1.0 for all, found {value}, a share of an "
                "epoch, which has no length here"
            )
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        raise ValueError(
            f"trainer.overfit_batches: expected 0, found {trainer.overfit_batches}; every update draws new "  # type: ignore[attr-defined]
            "transitions, so give a small dataset to over-fit to"
        )
    if trainer.gradient_clip_val:
        raise ValueError(
            f"trainer.gradient_clip_val: expected none, found {trainer.gradient_clip_val}; set "
            "model.optimisation.gradient_clip_norm, which clips each network on its own"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches: expected 1, found {trainer.accumulate_grad_batches}; set "
            "data.batch_size, which is the whole batch of an update"
        )
    refuse_narrow_weights(model, trainer)
    refuse_strategy(trainer, {"compile": execution.compile, "cuda_graphs": execution.cuda_graphs})
    device, scaled = trainer.strategy.root_device, getattr(trainer.precision_plugin, "scaler", None) is not None
    if execution.cuda_graphs and (not can_record(device) or trainer.world_size > 1 or scaled):
        raise ValueError(
            "model.execution.cuda_graphs: expected one process on a CUDA device and no float16, found "
            f"{trainer.world_size} on {device.type} with precision {trainer.precision}; set it to false"
        )


def refuse_epochs(trainer: Trainer) -> None:
    """Rejects what counts epochs, where a run is one epoch and it would never be done.

    Raises:
        ValueError: `Timer`, a `ModelCheckpoint` or validation waits for the end of epochs that there are not.
    """
    if isinstance(trainer.limit_train_batches, int):
        return
    waiting = [
        ("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch or 1, "trainer.val_check_interval"),
        *(
            (f"{type(callback).__name__}.every_n_epochs", epochs_between(callback), "every_n_train_steps")
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint)
        ),
    ]
    for name, every, remedy in waiting:
        if every > 1:
            raise ValueError(
                f"{name}: expected 1, found {every}, and a run is one epoch; set {remedy}, which counts updates, or "
                "trainer.limit_train_batches, the updates of an epoch"
            )
    if any(isinstance(each, Timer) and checks_at_ends_of_epochs(each) for each in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError("Timer.interval: expected step, found epoch, and a run is one epoch; set step")


def refuse_callbacks(trainer: Trainer) -> None:
    """Rejects callbacks of Lightning's that do not fit an algorithm; docs/callbacks.md lists what the others do.

    Raises:
        ValueError: See `REFUSED_CALLBACKS`; or weights are averaged that are sharded, or within a step of the trainer.
        ModuleNotFoundError: `DeviceStatsMonitor` needs psutil, which is not installed.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        for refused, reason in REFUSED_CALLBACKS.items():
            if isinstance(callback, refused):
                raise ValueError(f"trainer.callbacks: expected none of the class {name}: {reason}")
        if isinstance(callback, WeightAveraging):
            if isinstance(trainer.strategy, ModelParallelStrategy):
                raise ValueError(f"trainer.callbacks: expected no {name} with trainer.strategy={NAME}; use ddp")
            if chunk_size(trainer) > 1:
                raise ValueError(
                    f"data.updates_per_step: expected 1 with {name}, which averages once a step of the trainer, found "
                    f"{chunk_size(trainer)}"
                )
        if isinstance(callback, DeviceStatsMonitor):
            trainer.accelerator.get_device_stats(trainer.strategy.root_device)


def refuse_narrow_weights(model: LightningModule, trainer: Trainer) -> None:
    """Rejects 16-bit weights.

    Their relative precision is 1/256 (bfloat16) or 1/2048 (float16). Most steps of an optimizer, and of a target
    network with tau 0.005, are smaller and would be rounded away.

    Raises:
        ValueError: The trainer's precision makes weights 16-bit, or the model already has such weights.
    """
    narrow = any(weight.dtype in NARROW for weight in model.parameters())
    if narrow or isinstance(trainer.precision_plugin, HalfPrecision):
        raise ValueError(
            "trainer.precision: expected weights of at least float32 to train, found 16 bits with "
            f"{trainer.precision}, in which most steps of tau and of the learning rates are less than a weight's last "
            "digit and vanish; use bf16-mixed, or 16-mixed on a GPU"
        )


def refuse_launch(trainer: Trainer) -> None:
    """Rejects launches of processes that would fail after training, or deadlock.

    Args:
        trainer: Trainer of a command.

    Raises:
        ValueError: Processes are forked or spawned, so that they cannot return results; or there are several machines
            without an address of the first.
    """
    strategy = trainer.strategy
    method = start_method(strategy)
    if method is not None:
        raise ValueError(
            "trainer.strategy: expected processes that run the command themselves, as with ddp, found "
            f"{type(strategy).__name__} by {method}, whose processes cannot hand back how "
            "training ended; use ddp"
        )
    environment = getattr(strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"trainer.num_nodes: {trainer.num_nodes} machines are to train together, and nothing says where they are; "
            "start the command on each by torchrun or srun (docs/scaling.md), or set MASTER_ADDR, MASTER_PORT and "
            "NODE_RANK"
        )


def refuse_strategy(trainer: Trainer, graphs: Mapping[str, bool]) -> None:
    """Rejects settings that sharded weights do not support.

    Args:
        trainer: Trainer with any strategy.
        graphs: Values by name of the settings that make an update one graph, within which weights cannot be gathered.

    Raises:
        ValueError: The strategy is a ``ModelParallelStrategy`` other than `ShardedStrategy`; or with that one such a
            setting is on, or the precision is float16.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return
    if not isinstance(strategy, ShardedStrategy):
        raise ValueError(
            f"trainer.strategy: expected {NAME} for shares of weights, found {type(strategy).__name__}, whose "
            f"checkpoints do not fit runs of other layouts; use --trainer.strategy={NAME}"
        )
    for name, on in graphs.items():
        if on:
            raise ValueError(
                f"model.execution.{name}: expected false with trainer.strategy={NAME}, whose weights come and go "
                "during an update, found true; set it to false, or use ddp"
            )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(
            f"trainer.precision: expected 32-true, 64-true or bf16-mixed with trainer.strategy={NAME}, found "
            f"{trainer.precision}, the scale of whose gradients each process would find for itself; use bf16-mixed, "
            "or ddp"
        )
