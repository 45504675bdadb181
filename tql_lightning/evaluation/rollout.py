"""Evaluates a policy on a fixed set of episodes, with results that do not depend on the number of environments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tql_lightning.data.counter_random import normal, uniform
from tql_lightning.data.scores import normalized_score
from tql_lightning.evaluation.envs import EnvError, make_env
from tql_lightning.evaluation.metrics import bootstrap_interval, mean_with_error, rate_interval
from tql_lightning.evaluation.vector_envs import MakeEnv, VectorEnvs
from tql_lightning.nn.policy import Actor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_STEPS = 100_000  # of an episode; longer ones count as endless
ROWS = 16  # batch size of the policy, whatever the number of environments


@dataclass(frozen=True)
class RolloutResult:
    """Results per episode, in the order of the episodes.

    Attributes:
        returns: Undiscounted returns (episodes,).
        lengths: Lengths in steps (episodes,).
        successes: Last step's ``info["success"]``, 0 or 1, (episodes,); None if the environment reports none.

    Examples:
        >>> result = RolloutResult(np.array([1.0, 3.0]), np.array([200.0, 200.0]), successes=None)
        >>> result.summary()["return"]
        2.0
    """

    returns: Floats
    lengths: Floats
    successes: Floats | None

    def summary(self, reference_scores: tuple[float, float] | None = None) -> dict[str, float]:
        """Means, standard errors and 95 % intervals by metric key without ``eval/``.

        Args:
            reference_scores: Returns of a random and of an expert policy, for `normalized_score`; None if unknown.
        """
        columns = {"return": self.returns, "length": self.lengths}
        if self.successes is not None:
            columns["success_rate"] = self.successes
        if reference_scores is not None:
            columns["normalized_score"] = normalized_score(self.returns, reference_scores)
        summary: dict[str, float] = {}
        for name, values in columns.items():
            summary[name], summary[f"{name}_stderr"] = mean_with_error(values)
            is_rate = name == "success_rate"
            interval = rate_interval(int(values.sum()), len(values)) if is_rate else bootstrap_interval(values)
            summary[f"{name}_low"], summary[f"{name}_high"] = interval
        return summary

    def as_lists(self) -> dict[str, list[float] | None]:
        """The three arrays as lists, for JSON."""
        successes = None if self.successes is None else self.successes.tolist()
        return {"returns": self.returns.tolist(), "lengths": self.lengths.tolist(), "successes": successes}


def join_shares(shares: Sequence[RolloutResult]) -> RolloutResult:
    """Joins the results of processes 0, 1, ... that played shares of the same episodes; see ``share`` of `rollout`."""
    episodes = sum(len(share.returns) for share in shares)
    reported = any(share.successes is not None for share in shares)
    returns, lengths, successes = np.zeros(episodes), np.zeros(episodes), np.zeros(episodes)
    for process, share in enumerate(shares):
        own = slice(process, None, len(shares))
        returns[own], lengths[own] = share.returns, share.lengths
        if share.successes is not None:
            successes[own] = share.successes
    return RolloutResult(returns, lengths, successes if reported else None)


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
    share: tuple[int, int] = (0, 1),
    before_step: Callable[[], None] | None = None,
    make: MakeEnv | None = None,
    max_episode_steps: int | None = None,
) -> RolloutResult:
    """Plays a fixed set of episodes with a policy.

    The reset seed and the noise of episode i are functions of (seed, i). Environment j plays episodes j, j + num_envs,
    ...; the set does not depend on which episode ends first, so short ones are not favoured. Rounding in a matrix
    product depends on the number of rows and on a row's place, so the policy always sees `ROWS` rows, and episode i in
    row i mod `ROWS`. Results are thus the same for any ``num_envs``, ``parallel`` and ``share``. An action chunk is
    played to its end before the policy acts again. Global random states are not used.

    Args:
        actor: Policy.
        env_id: Gymnasium id of the environment.
        episodes: Number of episodes.
        seed: Seed of resets and noise.
        num_envs: Number of environments that play at once.
        parallel: Whether each environment runs in its own process, for environments slower than the communication.
        device: Device of the policy.
        dtype: Floating type of the policy.
        share: (p, q) to play only episodes p, p + q, p + 2q, ..., as process p of q; see `join_shares`.
        before_step: Function called before every step; an exception in it ends the evaluation.
        make: Function that makes an environment; None for `make_env`.
        max_episode_steps: See `make_env`.

    Raises:
        EnvError: an environment cannot be made, fails, returns NaN or infinity, or an episode does not end.
        ValueError: ``episodes`` or ``num_envs`` is below 1.
    """
    if episodes < 1 or num_envs < 1:
        raise ValueError(f"rollout: expected at least 1 episode and environment, found {episodes} and {num_envs}")
    own = np.arange(share[0], episodes, share[1])
    if not len(own):
        return RolloutResult(np.zeros(0), np.zeros(0), None)
    make = make or partial(make_env, env_id, max_episode_steps=max_episode_steps)
    envs = VectorEnvs(env_id, make, min(num_envs, len(own)), parallel)
    try:
        moved = replace(
            actor,
            act=lambda observations, noise: (
                actor.act(observations.to(device, dtype), noise.to(device, dtype)).float().cpu()
            ),
        )
        result = _play(moved, envs, own, seed, before_step or (lambda: None))
    except BaseException:
        with suppress(EnvError):  # the first error is the cause
            envs.close()
        raise
    envs.close()
    return result


def _play(actor: Actor, envs: VectorEnvs, numbers: Ints, seed: int, before_step: Callable[[], None]) -> RolloutResult:
    """Plays the episodes ``numbers``, an array that ``playing`` indexes."""
    episodes = len(numbers)
    seeds = reset_seeds(seed, int(numbers[-1]) + 1)
    playing = np.arange(envs.number)  # index of each environment's episode; `episodes` or above for none
    returns, lengths = np.zeros(episodes), np.zeros(episodes)
    successes: Floats | None = None
    noise = NoiseBuffer(seed, actor.noise_shape, envs.number)
    before_step()
    observations = envs.reset([seeds[numbers[episode]] for episode in playing], np.ones(envs.number, dtype=np.bool_))
    actions = np.zeros(envs.action_shape, dtype=np.float32)
    chunks = np.zeros((episodes, actor.action_chunk, actions.shape[1]), dtype=np.float32)  # of each episode
    while (playing < episodes).any():
        before_step()
        active = playing < episodes
        current = playing[active]
        indices = np.minimum(playing, episodes - 1)
        own = noise.at(numbers[indices], lengths[indices].astype(int))[torch.as_tensor(active)]
        position = lengths[current].astype(int) % actor.action_chunk
        deciding = position == 0
        if deciding.any():
            rows = numbers[current[deciding]] % ROWS
            decided = act_in_rows(actor, observations[active][deciding], own[torch.as_tensor(deciding)], rows, ROWS)
            chunks[current[deciding]] = decided.reshape(-1, *chunks.shape[1:])
        actions[active] = chunks[current, position]
        observations, rewards, terminations, truncations, info = envs.step(actions, active)
        returns[current] += rewards[active]
        lengths[current] += 1
        over = terminations | truncations
        ended = over & active
        reported = envs.successes(info, ended)
        if reported is not None:
            successes = np.zeros(episodes) if successes is None else successes
            successes[playing[ended]] = reported
        if (lengths[current] >= MOST_STEPS)[~over[active]].any():
            raise EnvError(
                f"environment {envs.env_id}: an episode did not end within {MOST_STEPS:,} steps; give the environment "
                "a time limit (max_episode_steps)"
            )
        playing = np.where(ended, playing + envs.number, playing)
        if over.any():
            # An environment without a further episode plays the last seed again, and its results are not counted.
            following = [seeds[numbers[min(int(episode), episodes - 1)]] for episode in playing]
            observations = envs.reset(following, over)
    return RolloutResult(returns, lengths, successes)


def act_in_rows(actor: Actor, observations: NDArray[Any], noise: Tensor, rows: Ints, size: int) -> NDArray[np.float32]:
    """Actions (m, n_a) of m observations; each is computed in its row of a batch of ``size``, padded with zeros."""
    waiting = np.arange(len(rows))
    actions: NDArray[np.float32] | None = None
    while len(waiting):  # again if two episodes have the same row
        _, first = np.unique(rows[waiting], return_index=True)
        chosen = waiting[first]
        inputs = torch.zeros(size, observations.shape[1])
        drawn = torch.zeros(size, *actor.noise_shape)
        at = torch.as_tensor(rows[chosen])
        inputs[at] = torch.as_tensor(observations[chosen], dtype=torch.float32)
        drawn[at] = noise[torch.as_tensor(chosen)]
        found: NDArray[np.float32] = actor.act(inputs, drawn).numpy()[rows[chosen]]
        actions = np.zeros((len(rows), found.shape[1]), dtype=np.float32) if actions is None else actions
        actions[chosen] = found
        waiting = np.delete(waiting, first)
    assert actions is not None
    return actions


def reset_seeds(seed: int, episodes: int) -> list[int]:
    """Reset seed of each of the first episodes."""
    return [reset_seed(seed, episode) for episode in range(episodes)]


def reset_seed(seed: int, episode: int) -> int:
    """Reset seed of an episode, a function of (seed, episode)."""
    return int(uniform(seed, torch.zeros(1, dtype=torch.long), torch.tensor([episode]), 1) * 2**31)


def episode_noise(seed: int, episode: int, steps: range, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (steps, *shape) float32 for steps of an episode, a function of (seed, episode, step)."""
    size = math.prod(shape)
    columns = 2 * math.ceil(size / 2)
    # One stream per step, one row per episode.
    numbers = uniform(seed, torch.arange(steps.start, steps.stop) + 1, torch.tensor([episode]), columns)
    return normal(numbers[:, 0])[:, :size].reshape(len(steps), *shape).float()


class NoiseBuffer:
    """Noise of each environment's episode, drawn in blocks of steps, since few numbers cost as much as many."""

    BLOCK = 64

    def __init__(self, seed: int, shape: tuple[int, ...], number: int) -> None:
        self._seed, self._shape = seed, shape
        self._blocks = np.full((number, 2), -1)  # episode and block of what is drawn
        self._drawn = torch.zeros(number, self.BLOCK, *shape)

    def at(self, episodes: Ints, steps: Ints) -> Tensor:
        """Noise of a step of each environment's episode, (num_envs, *shape)."""
        wanted = np.stack([episodes, steps // self.BLOCK], axis=1)
        for env in np.flatnonzero((wanted != self._blocks).any(axis=1)):
            start = int(wanted[env, 1]) * self.BLOCK
            steps_of_block = range(start, start + self.BLOCK)
            self._drawn[env] = episode_noise(self._seed, int(episodes[env]), steps_of_block, self._shape)
        self._blocks = wanted
        return self._drawn[torch.arange(len(steps)), torch.as_tensor(steps % self.BLOCK)]
