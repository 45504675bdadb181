"""Observations to check a policy with: from its environment, or from a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.environment import check_env_id
from tql_lightning.data.named import load_dataset
from tql_lightning.data.transitions import DatasetError
from tql_lightning.evaluation.envs import EnvError, make_env

Floats = NDArray[np.float32]


def sample_observations(
    raw: Mapping[str, Any], rows: int, observation_dim: int, dataset: str | None = None
) -> tuple[Floats, str]:
    """Samples observations for a checkpoint.

    No file beside the checkpoint is read, since a stranger's configuration could name any loader of data.

    Args:
        raw: Content of the checkpoint, with the id of its environment.
        rows: Number of observations.
        observation_dim: n_s.
        dataset: Name or path of a dataset to sample, see `load_dataset`; None for observations of random actions in the
            environment, or else standard normal numbers.

    Returns:
        Observations (rows, n_s), and a phrase that names their source.

    Raises:
        DatasetError: the dataset cannot be loaded, or holds other observations.
    """
    rng = np.random.default_rng(0)
    if dataset is not None:
        loaded = load_dataset(dataset)
        if loaded.observation_dim != observation_dim:
            raise DatasetError(
                f"data {dataset}: expected {observation_dim} observations, as the checkpoint has, found "
                f"{loaded.observation_dim}; name the dataset that it was trained on"
            )
        chosen = rng.integers(len(loaded.observations), size=rows)
        return np.ascontiguousarray(loaded.observations[chosen], dtype=np.float32), f"dataset {loaded.name}"
    env_id = raw.get("OfflineDataModule", {}).get("env_id")
    if env_id is not None:
        try:
            check_env_id(env_id)
            return _random_play(env_id, rows, observation_dim), f"random actions in {env_id}"
        except (Exception, SystemExit):  # not here, not to be made, or at fault
            pass
    return rng.standard_normal((rows, observation_dim), dtype=np.float32), "standard normal numbers"


def _random_play(env_id: str, rows: int, observation_dim: int) -> Floats:
    env = make_env(env_id)
    try:
        env.action_space.seed(0)
        observation, _ = env.reset(seed=0)
        observations = np.zeros((rows, observation_dim), dtype=np.float32)
        if observation.shape != observations[0].shape:
            raise EnvError(f"environment {env_id}: expected {observation_dim} observations, found {observation.shape}")
        for row in range(rows):
            observations[row] = observation
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                observation, _ = env.reset()
    finally:
        env.close()
    return observations
