"""Helpers of observers: checked access to model and data, and fixed transitions."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.storage import store
from tql_lightning.data.windows import Windows
from tql_lightning.evaluation.envs import EnvError, check_env, known_bounds
from tql_lightning.nn.critic import Critic
from tql_lightning.nn.dropout import evaluation_mode as evaluation_mode
from tql_lightning.training.algorithm import Algorithm


@contextmanager
def saved_weights(trainer: Trainer, model: LightningModule) -> Iterator[None]:
    """Gives the model the weights that a checkpoint would hold, if a `WeightAveraging` callback averages them."""
    averaging = [each for each in trainer.callbacks if isinstance(each, WeightAveraging)]  # type: ignore[attr-defined]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, model)
    try:
        yield
    finally:
        for callback in reversed(averaging):
            callback.on_validation_epoch_end(trainer, model)


def require_packages(callback: Callback, *names: str) -> None:
    """Rejects a callback that would fail for want of a package, before any training.

    Raises:
        ImportError: A package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"{type(callback).__name__} needs {name}, which is not installed; pip install {name}, or leave this "
                "callback out"
            )


def require_algorithm(callback: Callback, pl_module: LightningModule) -> Algorithm:
    """Returns the model if it is an `Algorithm`.

    Raises:
        ValueError: The model is another LightningModule.
    """
    if not isinstance(pl_module, Algorithm):
        raise ValueError(
            f"{type(callback).__name__}: expected a subclass of tql_lightning.Algorithm, found "
            f"{type(pl_module).__name__}; leave this callback out"
        )
    return pl_module


def require_critic(callback: Callback, pl_module: LightningModule) -> Critic:
    """Returns the critic Q(s, a) of an algorithm.

    Raises:
        ValueError: The algorithm has no critic.
    """
    critic = getattr(require_algorithm(callback, pl_module), "critic", None)
    if not isinstance(critic, Critic):
        raise ValueError(
            f"{type(callback).__name__}: expected an algorithm with a critic, found {type(pl_module).__name__}, "
            "which has none; leave this callback out"
        )
    return critic


def find_critic(callback: Callback, model: Algorithm) -> Critic | None:
    """Returns the critic Q(s, a), or logs a note and returns None for an algorithm without one."""
    critic = getattr(model, "critic", None)
    if not isinstance(critic, Critic):
        rank_zero_info(f"{type(callback).__name__}: {type(model).__name__} has no critic; nothing is drawn")
        return None
    return critic


def data_of(callback: Callback, trainer: Trainer) -> OfflineDataModule:
    """Returns the trainer's data.

    Raises:
        ValueError: The trainer has no OfflineDataModule.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, OfflineDataModule):
        raise ValueError(f"{type(callback).__name__}: expected to train on an OfflineDataModule, found none")
    return data


def environment_of(callback: Callback, data: object, env_id: str | None) -> str:
    """Returns the given environment, else the one that the data module's dataset names.

    Raises:
        ValueError: Neither is there.
    """
    found = env_id or getattr(data, "env_id", None)
    if found is None:
        raise ValueError(
            f"{type(callback).__name__}.env_id: the dataset names no environment; give its Gymnasium id, or leave "
            "this callback out"
        )
    return str(found)


def check_env_of(
    callback: Callback, trainer: Trainer, model: Algorithm, env_id: str, max_episode_steps: int | None
) -> None:
    """Makes a callback's environment once, and compares it with model and dataset.

    Raises:
        ValueError: It cannot be made, has no time limit, or has other sizes or bounds; the message names the callback.
    """
    dataset = getattr(getattr(trainer, "datamodule", None), "dataset", None)
    bounds = known_bounds(*(getattr(dataset, name, None) for name in ("action_low", "action_high")))
    try:
        check_env(env_id, model.observation_dim, model.env_action_dim, bounds, max_episode_steps)
    except EnvError as error:
        error.add_note(f"found by {type(callback).__name__}, trainer.callbacks")
        raise


def fixed_transitions(data: OfflineDataModule, size: int, model: LightningModule) -> tuple[Tensor, Tensor]:
    """Returns evenly spaced training transitions, the same at every call, on the model's device and in its type.

    Args:
        data: Data that is trained on.
        size: Largest number of transitions.
        model: Model with the device and floating-point type to convert to.

    Returns:
        Observations (size, n_s) and actions (size, n_a); with action chunks the h actions are concatenated.
    """
    windows = Windows(store(data.dataset, "cpu"), data.dataset, data.span)
    batch = windows.batch(torch.linspace(0, len(windows) - 1, min(size, len(windows))).long())
    dtype = next(model.parameters()).dtype
    return batch.observations.to(model.device, dtype), batch.actions.to(model.device, dtype)
