"""Rejects trainer settings that cannot train an algorithm, before training starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning.pytorch.strategies import ModelParallelStrategy

from tql_lightning.system.private_api import start_method
from tql_lightning.training.cuda_graph import can_record
from tql_lightning.training.execution import Execution
from tql_lightning.training.sharding import NAME, ShardedStrategy

NARROW = (torch.bfloat16, torch.float16)


def check_trainer(trainer: Trainer, model: LightningModule, execution: Execution) -> None:
    """Rejects a trainer that cannot train an algorithm.

    Args:
        trainer: Trainer of a fit.
        model: Algorithm to train.
        execution: Execution settings of the algorithm.

    Raises:
        ValueError: The trainer clips or accumulates gradients; ``cuda_graphs`` is set without a CUDA device, with
            several processes or with float16; or `refuse_narrow_weights` or `refuse_strategy` rejects it.
    """
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
    """Rejects launches of processes that would fail after training, or wait for each other for ever.

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
