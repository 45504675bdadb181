"""Whether a dataset fits the environment that it names."""

from __future__ import annotations

import warnings
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from tql_lightning.data.checks import DatasetError
from tql_lightning.data.flatten import flat_space
from tql_lightning.data.transitions import TransitionDataset

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec


def environment_spec(env_id: str) -> str | EnvSpec:
    """What Gymnasium makes an environment of: an id, or a specification that was written as JSON."""
    from gymnasium.envs.registration import EnvSpec

    return EnvSpec.from_json(env_id) if env_id.startswith("{") else env_id


def check_environment(dataset: TransitionDataset) -> str | None:
    """Makes the environment that a dataset names, and compares sizes and the bounds of actions.

    Returns:
        Why they could not be compared, where the environment cannot be made here; whoever plays in it refuses it.

    Raises:
        DatasetError: they differ.
    """
    import gymnasium

    if dataset.env_id is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what whoever plays in it is told
        try:
            env = gymnasium.make(environment_spec(dataset.env_id))
        except Exception as error:  # whatever an environment, its package or its simulator raises
            return f"{type(error).__name__}: {error}"
    with closing(env):
        check_spaces(dataset, env.observation_space, env.action_space)
    return None


def check_spaces(dataset: TransitionDataset, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any]) -> None:
    """Compares a dataset with the spaces of its environment.

    Raises:
        DatasetError: sizes differ, or the bounds of actions.
    """
    from gymnasium.spaces import Box

    columns = flat_space(observations)
    expected = None if columns is None else columns.shape[0]
    if expected != dataset.observation_dim:
        raise DatasetError(
            f"{dataset.name}: observations: expected {expected or observations} columns as in {dataset.env_id}, found "
            f"{dataset.observation_dim}; name the environment that the data are from as env_id"
        )
    if not isinstance(actions, Box) or actions.shape != (dataset.action_dim,):
        raise DatasetError(
            f"{dataset.name}: actions: expected {actions} as in {dataset.env_id}, found {dataset.action_dim} columns; "
            "name the environment that the data are from as env_id"
        )
    for name, found, bound in (
        ("action_low", dataset.action_low, actions.low),
        ("action_high", dataset.action_high, actions.high),
    ):
        if not np.allclose(found, bound, rtol=1e-5, atol=1e-6):
            raise DatasetError(
                f"{dataset.name}: {name}: expected {bound.tolist()} as in {dataset.env_id}, found {found.tolist()}; "
                f"the policy's output would be scaled wrongly: give the environment's bounds as {name}"
            )
