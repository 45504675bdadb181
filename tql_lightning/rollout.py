"""Evaluates a policy: episodes fixed beforehand, the same result however many environments play them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tql_lightning.data.counter_random import normal, uniform
from tql_lightning.envs import EnvError, make_env
from tql_lightning.metrics import MeanWithError
from tql_lightning.nn.policy import Actor

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RolloutResult:
    """What every episode gave, in the order of the episodes.

    Attributes:
        returns: undiscounted, (episodes,).
        lengths: steps, (episodes,).
        successes: 0 or 1 from the last step's ``info["success"]``, (episodes,); None where the environment
            reports none.
    """

    returns: Floats
    lengths: Floats
    successes: Floats | None

    def summary(self) -> dict[str, float]:
        """Means and standard errors by the keys they are logged under, without ``eval/``."""
        columns = {"return": self.returns, "length": self.lengths}
        if self.successes is not None:
            columns["success_rate"] = self.successes
        summary: dict[str, float] = {}
        for name, values in columns.items():
            summary[name], summary[f"{name}_stderr"] = mean_with_error(values)
        return summary


def mean_with_error(values: Floats) -> tuple[float, float]:
    """Mean of values and its standard error; see `MeanWithError`."""
    metric = MeanWithError()
    metric.update(torch.as_tensor(values))
    mean, error = metric.compute()
    return float(mean), float(error)


@torch.inference_mode()
def rollout(
    actor: Actor,
    env_id: str,
    episodes: int,
    seed: int,
    num_envs: int = 10,
    parallel: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> RolloutResult:
    """Plays a fixed set of episodes with a policy.

    Episode i, its reset seed and all its noise are functions of (seed, i), and environment j plays episodes
    j, j + num_envs, ...; nothing depends on which episode ends first, so short ones are not favoured. The
    policy always sees one row per episode, since sums in a matrix product depend on the number of rows:
    results are the same whatever ``num_envs`` and ``parallel``. A chunk of actions is taken to its end before the
    policy is asked again. Global random states are left alone.

    Args:
        actor: the policy.
        env_id: Gymnasium id of the environment.
        episodes: how many.
        seed: of resets and noise.
        num_envs: environments that play at once.
        parallel: a process for each environment, for environments slower than their communication.
        device: where the policy computes.
        dtype: floating type that the policy computes in.

    Returns:
        Return, length and success of every episode.

    Raises:
        EnvError: the environment cannot be made, or returns NaN or infinity.
        ValueError: ``episodes`` or ``num_envs`` is below 1.
    """
    import gymnasium
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

    if episodes < 1 or num_envs < 1:
        raise ValueError(f"rollout: expected at least 1 episode and environment, found {episodes} and {num_envs}")
    num_envs = min(num_envs, episodes)
    makers = [partial(make_env, env_id)] * num_envs
    envs: gymnasium.vector.VectorEnv[Any, Any, Any]
    if parallel:
        envs = AsyncVectorEnv(makers, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
    else:
        envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    try:
        moved = replace(
            actor,
            act=lambda observations, noise: (
                actor.act(observations.to(device, dtype), noise.to(device, dtype)).float().cpu()
            ),
        )
        return _play(moved, envs, env_id, episodes, seed)
    finally:
        envs.close()


def _play(actor: Actor, envs: Any, env_id: str, episodes: int, seed: int) -> RolloutResult:
    num_envs: int = envs.num_envs
    seeds = reset_seeds(seed, episodes)
    playing = np.arange(num_envs)  # the episode that each environment plays; `episodes` and above: none
    returns, lengths = np.zeros(episodes), np.zeros(episodes)
    successes: Floats | None = None
    observations, _ = envs.reset(seed=[seeds[int(episode)] for episode in playing])
    actions = np.zeros(envs.action_space.shape, dtype=np.float32)
    chunks = np.zeros((episodes, actor.action_chunk, actions.shape[1]), dtype=np.float32)  # what each episode decided
    inputs = np.zeros((episodes, observations.shape[1]), dtype=np.float32)
    while (playing < episodes).any():
        active = playing < episodes
        current = playing[active]
        inputs[current] = observations[active]
        position = lengths[current].astype(int) % actor.action_chunk
        deciding = current[position == 0]
        if len(deciding):
            noise = step_noise(seed, lengths, actor.noise_shape)
            decided = actor.act(torch.as_tensor(inputs), noise).numpy()[deciding]
            chunks[deciding] = decided.reshape(len(deciding), *chunks.shape[1:])
        actions[active] = chunks[current, position]
        observations, rewards, terminations, truncations, info = envs.step(actions)
        _require_finite(env_id, rewards[active], observations[active])
        returns[current] += rewards[active]
        lengths[current] += 1
        ended = (terminations | truncations) & active
        if "success" in info:
            successes = np.zeros(episodes) if successes is None else successes
            successes[playing[ended]] = np.asarray(info["success"], dtype=np.float64)[ended]
        idle_ended = (terminations | truncations) & ~active
        playing = np.where(ended, playing + num_envs, playing)
        if (ended | idle_ended).any():
            inputs[playing[ended] - num_envs] = 0.0
            # An environment without a further episode repeats its last seed, and nothing counts it.
            following = [seeds[min(int(episode), episodes - 1)] for episode in playing]
            observations, _ = envs.reset(seed=following, options={"reset_mask": ended | idle_ended})
    return RolloutResult(returns, lengths, successes)


def reset_seeds(seed: int, episodes: int) -> list[int]:
    """Seed of each episode's environment, a function of (seed, episode)."""
    numbers = uniform(seed, torch.zeros(1, dtype=torch.long), torch.arange(episodes), 1)
    return [int(number) for number in (numbers.flatten() * 2**31)]


def step_noise(seed: int, steps: Floats, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of each episode at its own step, a function of (seed, episode, step).

    Args:
        seed: of the evaluation.
        steps: steps that each episode has taken, (episodes,).
        shape: of the noise of one observation.

    Returns:
        (episodes, *shape) float32.
    """
    columns = 2 * math.ceil(math.prod(shape) / 2)
    episodes = len(steps)
    # One stream per step, one row per episode; only each episode's own step is drawn.
    unique, where = np.unique(steps, return_inverse=True)
    numbers = uniform(seed, torch.as_tensor(unique).long() + 1, torch.arange(episodes), columns)
    own = numbers[torch.as_tensor(where), torch.arange(episodes)]
    return normal(own)[:, : math.prod(shape)].reshape(episodes, *shape).float()


def _require_finite(env_id: str, rewards: Floats, observations: NDArray[Any]) -> None:
    if not (np.isfinite(rewards).all() and np.isfinite(observations).all()):
        raise EnvError(
            f"environment {env_id}: expected finite rewards and observations, found NaN or infinity; "
            "the policy's actions may have driven the simulation apart"
        )
