"""Writes datasets in other people's formats, with their own packages."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np


def write_d4rl(path: Path, **arrays: Any) -> Path:
    """An HDF5 file in D4RL's layout, with what else its files hold."""
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=np.asarray(values), compression="gzip" if np.ndim(values) else None)
        file.create_dataset("infos/qpos", data=np.zeros((3, 2)))
        file.create_dataset("metadata/algorithm", data=np.bytes_(b"SAC"))
    return path


def record(env: gymnasium.Env[Any, Any], episodes: int, steps: int, seed: int = 0) -> list[Any]:
    """Minari's buffers of random episodes, each of at most so many steps; the time limit is the environment's."""
    from minari.data_collector.episode_buffer import EpisodeBuffer

    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    buffers = []
    for number in range(episodes):
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        rows: dict[str, list[Any]] = {"observations": [observation]}
        for _ in range(steps):
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            rows["observations"].append(observation)
            taken = {"actions": action, "rewards": reward, "terminations": terminated, "truncations": truncated}
            for name, value in taken.items():
                rows.setdefault(name, []).append(value)
            if terminated or truncated:
                break
        if isinstance(env.observation_space, gymnasium.spaces.Dict):
            stacked = {key: np.stack([row[key] for row in rows["observations"]]) for key in env.observation_space}
            buffers.append(EpisodeBuffer(id=number, **(rows | {"observations": stacked})))  # type: ignore[arg-type]
        else:
            buffers.append(EpisodeBuffer(id=number, **rows))
    return buffers


def write_minari(name: str, env: gymnasium.Env[Any, Any] | None, buffers: list[Any], **settings: Any) -> Any:
    """A Minari dataset in its cache, made by the package itself."""
    import minari

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of author, code and algorithm that are not told
        return minari.create_dataset_from_buffers(name, buffers, env=env, **settings)
