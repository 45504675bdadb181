"""Runs whose weights may be in shares, with all that looks at them; as a script, those of two processes.

Its arguments: a folder, and a checkpoint of five updates of one process. Without the checkpoint it trains methods other
than TQL.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor

from tests.toy import fit, toy_model
from tql_lightning.algorithms.floq import Floq, ReturnFlow
from tql_lightning.algorithms.iql import IQL
from tql_lightning.algorithms.q_transformer import QTransformer
from tql_lightning.algorithms.rebrac import ReBRAC
from tql_lightning.callbacks.attention_entropy import AttentionEntropyMonitor
from tql_lightning.callbacks.attention_map import AttentionMap
from tql_lightning.callbacks.before_divergence import BeforeDivergence
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.callbacks.q_landscape import QLandscape
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.nn.autoregressive import AutoregressiveCritic
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.gaussian_policy import GaussianPolicy, SquashedGaussianPolicy
from tql_lightning.nn.layer_temperature import LayerTemperature
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.sigma_reparam import SigmaReparam
from tql_lightning.nn.temperature import AttentionTemperature, TargetSchedule
from tql_lightning.nn.value_network import ValueNetwork
from tql_lightning.nn.velocity_critic import VelocityCritic
from tql_lightning.run.checkpoint_io import WholeCheckpointIO
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.divergence import TrainingDivergedError
from tql_lightning.training.problem import Problem

TRANSFORMER: dict[str, Any] = {
    "critic": partial(TransformerCritic, hidden_dim=16, head_dim=8, weight_parametrisation=SigmaReparam),
    "entropy_control": partial(AttentionTemperature, schedule=TargetSchedule(0.1, 10)),
    "extraction": "best_of_n",
    "gradient_clip_norm": 1.0,
    "normalize_q_loss": True,
    "tau": 0.1,
}
MLP: dict[str, Any] = {"critic": partial(MLPCritic, hidden_dims=(8, 8))}
SMALL: dict[str, Any] = {"hidden_dims": (8, 8)}
RETURNS: dict[str, Any] = {"problem": Problem(1, (-4.0, 4.0), (-4.0, 4.0))}
METHODS: dict[str, Callable[[], Algorithm]] = {
    "floq": lambda: Floq(
        *(3, 1),
        velocity_critic=partial(VelocityCritic, **SMALL, flow_steps=2),
        policy=partial(FlowPolicy, **SMALL, flow_steps=2),
        return_flow=ReturnFlow(noise_samples=2),
        **MLP,
        **RETURNS,
    ),
    "q_transformer": lambda: QTransformer(
        *(3, 1),
        critic=partial(AutoregressiveCritic, hidden_dim=16, head_dim=8, num_bins=4),
        entropy_control=LayerTemperature,
        **RETURNS,
    ),
    "rebrac": lambda: ReBRAC(3, 1, policy=partial(SquashedGaussianPolicy, **SMALL), **MLP),
}


class Shares(Callback):
    """Asserts that after an update weights are shares, and that nothing is kept of passes without a backward pass."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        sharded = trainer.world_size > 1
        assert all(isinstance(parameter, DTensor) == sharded for parameter in pl_module.parameters())
        if sharded:
            state = pl_module.target_critic._get_fsdp_state()
            assert state._comm_ctx.post_forward_order == []
            assert state._fsdp_param_groups[0]._post_forward_indices == []


def train(folder: Path, processes: int, model: dict[str, Any], updates: int, **settings: Any) -> Trainer:
    """Trains TQL in float64, sharded where there are several processes."""
    return train_model(folder, processes, toy_model(**model), updates, **settings)


def train_model(folder: Path, processes: int, model: Any, updates: int, **settings: Any) -> Trainer:
    """Trains any model in float64, sharded where there are several processes."""
    defaults: dict[str, Any] = {"precision": "64-true", "plugins": [WholeCheckpointIO()], "devices": processes}
    strategy = {"strategy": "sharded"} if processes > 1 else {}
    return fit(folder, model, updates, **(defaults | strategy | settings))


def train_methods(folder: Path, processes: int) -> None:
    """Makes six updates with each method and leaves a checkpoint of each; ReBRAC's actor is updated three times."""
    for name, make in METHODS.items():
        seed_everything(0, verbose=False)
        train_model(folder, processes, make(), 6, updates_per_step=3).save_checkpoint(folder / f"{name}.ckpt")


def train_watched(folder: Path, processes: int) -> None:
    """Ten updates with everything that looks at the model; leaves ``last.ckpt``, and ``previous.ckpt`` of update 5."""
    callbacks = [
        Shares(),
        AttentionEntropyMonitor(transitions=16),
        RolloutEvaluation(3, 5, env_id="tests.environments:Toy-v0", num_envs=2),
        AttentionMap(5, transitions=16),
        QLandscape(5, transitions=16, grid=5),
        LastCheckpoint(str(folder), 5),
    ]
    logger = CSVLogger(folder, name="", version="")
    settings: dict[str, Any] = {"log_every_n_steps": 5, "check_val_every_n_epoch": None, "val_check_interval": 1}
    train(folder, processes, TRANSFORMER, 10, callbacks=callbacks, logger=logger, **settings)


class NaNInOnePart(Callback):
    """Spoils a reward of the last process's part of a batch."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        if trainer.global_step == 5 and trainer.global_rank == trainer.world_size - 1:
            batch[0].rewards[1, 0] = math.nan


def diverge(folder: Path) -> None:
    """Training that diverges after five updates, from what one process draws."""
    callbacks = [NaNInOnePart(), BeforeDivergence()]
    with pytest.raises(TrainingDivergedError):
        train(folder, 2, MLP, 20, callbacks=callbacks, log_every_n_steps=5)


def assert_refused(folder: Path) -> None:
    """What cannot be sharded is refused before training, with the reason."""
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    plain = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (r"model\.execution\.compile: expected false with trainer\.strategy=sharded", {"compile": True}, {}),
        (r"model\.execution\.cuda_graphs: expected false with trainer\.strategy=sharded", {"cuda_graphs": True}, {}),
        (
            r"trainer\.strategy: expected sharded .* found ModelParallelStrategy",
            {},
            {"strategy": plain, "precision": "32-true"},
        ),
        (r"trainer\.precision: .*found 16-mixed", {}, {"precision": None, "plugins": [scaled]}),
    ]
    for message, model, settings in cases:
        with pytest.raises(ValueError, match=message):
            train(folder, 2, model, 5, **settings)


def assert_loose_weights_are_refused(folder: Path) -> None:
    """A learned standard deviation is in no module with a forward, which would gather it."""
    policy = partial(GaussianPolicy, **SMALL, learned_std=True)
    model = IQL(3, 1, value=partial(ValueNetwork, **SMALL), policy=policy, **MLP)
    with pytest.raises(ValueError, match=r"found log_std of GaussianPolicy; use ddp"):
        train_model(folder, 2, model, 5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    if len(sys.argv) == 2:
        train_methods(root / "two", 2)
        assert_loose_weights_are_refused(root)
        sys.exit()
    assert_refused(root)
    train_watched(root / "two", 2)
    train(root, 2, TRANSFORMER, 10, ckpt_path=Path(sys.argv[2])).save_checkpoint(root / "continued.ckpt")
    before = root / "two" / "previous.ckpt"
    train(root, 2, TRANSFORMER, 10, strategy="ddp", ckpt_path=before).save_checkpoint(root / "ddp.ckpt")
    diverge(root / "diverged")
