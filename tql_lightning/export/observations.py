"""Observations to check a policy with: from its dataset, or else from its environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.environment import check_env_id
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.evaluation.envs import EnvError, make_env
from tql_lightning.run.folder import CONFIG_FILE
from tql_lightning.trust.imports import import_if_allowed, returns_dataset
from tql_lightning.trust.yaml_text import read_yaml

Floats = NDArray[np.float32]


def sample_observations(
    checkpoint: Path, raw: Mapping[str, Any], rows: int, observation_dim: int
) -> tuple[Floats, str]:
    """Samples observations for a checkpoint: from its dataset, its environment, or a standard normal distribution.

    Args:
        checkpoint: Path of the checkpoint, in the folder ``checkpoints`` of a run with a configuration.
        raw: Content of the checkpoint, with the id of its environment.
        rows: Number of observations.
        observation_dim: n_s.

    Returns:
        Observations (rows, n_s), and a phrase that names their source.
    """
    rng = np.random.default_rng(0)
    dataset = _dataset(checkpoint.absolute().parent.parent / CONFIG_FILE)
    if dataset is not None and dataset.observation_dim == observation_dim:
        chosen = rng.integers(len(dataset.observations), size=rows)
        return np.ascontiguousarray(dataset.observations[chosen], dtype=np.float32), f"dataset {dataset.name}"
    env_id = raw.get("OfflineDataModule", {}).get("env_id")
    if env_id is not None:
        try:
            check_env_id(env_id)
            return _random_play(env_id, rows, observation_dim), f"random actions in {env_id}"
        except (EnvError, ValueError):  # not installed, or not allowed
            pass
    return rng.standard_normal((rows, observation_dim), dtype=np.float32), "standard normal numbers"


def _dataset(config: Path) -> TransitionDataset | None:
    """The dataset of a run's configuration; None if it cannot be loaded."""
    import jsonargparse

    jsonargparse.set_parsing_settings(subclasses_enabled=[TransitionDataset])
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(OfflineDataModule, "data")
    try:
        data = read_yaml(config.read_text())["data"]
        _check_dataset(data["dataset"])
        module = parser.instantiate_classes(parser.parse_object({"data": data})).data
    except (OSError, ValueError, TypeError, KeyError, ImportError, yaml.YAMLError, jsonargparse.ArgumentError):
        return None
    assert isinstance(module, OfflineDataModule)
    return module.dataset


def _check_dataset(dataset: Any) -> None:
    """Refuses a loader whose module a file must not import; see `import_if_allowed`."""
    path = dataset if isinstance(dataset, str) else dataset["class_path"]
    if "." in path:
        import_if_allowed(path, ("tql_lightning",), holds=returns_dataset)


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
