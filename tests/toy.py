"""A small real problem that tests train on: the data, the model and the trainer."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer, seed_everything

from tql_lightning.algorithms.tql import OPTIMISATION, TQL
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.execution import Execution
from tql_lightning.training.problem import Problem


def toy_dataset(
    size: int = 200, env_id: str | None = None, seed: int = 0, reward_scale: float = 1.0
) -> TransitionDataset:
    """Random transitions of Pendulum's sizes, in episodes of 20."""
    rng = np.random.default_rng(seed)
    ends = np.arange(size) % 20 == 19
    dataset = TransitionDataset.from_arrays(
        rng.normal(size=(size, 3)),
        rng.uniform(-2, 2, size=(size, 1)),
        reward_scale * rng.normal(size=size),
        ends & (np.arange(size) % 40 == 39),
        ends,
        rng.normal(size=(size, 3)),
        name="toy",
        env_id=env_id,
        action_low=-2.0,
        action_high=2.0,
    )
    return dataset.hold_out(0.2)


def toy_model(kind: type[TQL] = TQL, **settings: Any) -> TQL:
    """A small TQL with its weights drawn from seed 0; its actions are Pendulum's, ``action_chunk`` times.

    Settings of `Problem`, `Optimisation` and `Execution`, and the policy's ``num_samples``, may stand among its own.
    """
    seed_everything(0, verbose=False)
    policy = {"hidden_dims": (16,), "flow_steps": 2, "num_samples": settings.pop("num_samples", 16)}
    defaults: dict[str, Any] = {
        "critic": partial(TransformerCritic, hidden_dim=16, head_dim=8),
        "policy": partial(FlowPolicy, **policy),
        "warmup_updates": 3,
        "schedule_updates": 40,
        "learning_rate": 1e-3,
        "learning_rates": {},
    }
    chosen = grouped(defaults | settings, problem=Problem(), optimisation=OPTIMISATION, execution=Execution())
    return kind(3, settings.get("action_chunk", 1), **chosen)


def grouped(settings: dict[str, Any], **groups: Any) -> dict[str, Any]:
    """Flat settings with those of groups, given by their defaults, put into them."""
    members = {name: {part.name for part in fields(group)} & settings.keys() for name, group in groups.items()}
    flat = {name: value for name, value in settings.items() if not any(name in each for each in members.values())}
    made = {name: replace(group, **{each: settings[each] for each in members[name]}) for name, group in groups.items()}
    return flat | made


def toy_chunk(model: Algorithm, updates: int = 1, batch_size: int = 16) -> tuple[Any, Any]:
    """Batches and noise of a model's first updates on the toy dataset, leading dimensions (K, B)."""
    return TransitionSampler(toy_dataset(), batch_size, seed=0, spec=model.update_spec).chunk(0, updates)


def fit(
    folder: Path,
    model: TQL,
    updates: int,
    callbacks: list[Callback] | None = None,
    ckpt_path: Path | None = None,
    updates_per_step: int = 5,
    env_id: str | None = None,
    data: dict[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    """Trains and returns the trainer; ``data`` are further settings of the datamodule, others the trainer's."""
    defaults: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": any("Checkpoint" in type(callback).__name__ for callback in callbacks or []),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
        "devices": 1,
    }
    trainer = Trainer(
        max_steps=updates,
        max_epochs=-1,
        callbacks=callbacks,
        default_root_dir=folder,
        **(defaults | settings),
    )
    datamodule = OfflineDataModule(
        toy_dataset(env_id=env_id), updates_per_step=updates_per_step, **({"batch_size": 16} | (data or {}))
    )
    trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    return trainer
