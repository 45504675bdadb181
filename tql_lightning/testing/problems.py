"""Two small datasets that contracts train on: one to update parameters with, and one to learn from."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.nn.policy import Actor

OBSERVATION_DIM, ACTION_DIM = 3, 2
EPISODE = 20  # steps of an episode of `random_transitions`
CLONED_REWARD = 0.5  # mean reward of `preferences` in the data, and so of a policy that clones them
ENVIRONMENT = f"{__name__}:Contract-v0"


class ContractEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Observations that follow from the seed and all actions; every second episode terminates after five steps."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (OBSERVATION_DIM,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins at a random observation."""
        super().reset(seed=seed)
        self._place = self.np_random.uniform(-1, 1, OBSERVATION_DIM).astype(np.float32)
        self._terminates, self._steps = bool(self.np_random.integers(2)), 0
        return self._place, {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Moves by the action; the reward lies in [0, 1]."""
        self._steps += 1
        self._place = 0.9 * self._place + np.float32(action.sum()) * np.arange(1, OBSERVATION_DIM + 1, dtype=np.float32)
        ends = self._steps == 5
        return self._place, float(action[0] + 1.0) / 2.0, ends and self._terminates, ends, {}


gymnasium.register("Contract-v0", lambda **_: ContractEnv(), max_episode_steps=5, disable_env_checker=True)


def random_transitions(size: int = 240) -> TransitionDataset:
    """Random numbers in episodes, every other of which terminates; rewards in [0, 1], a fifth held out."""
    rng = np.random.default_rng(0)
    ends = np.arange(size) % EPISODE == EPISODE - 1
    return TransitionDataset.from_arrays(
        rng.normal(size=(size, OBSERVATION_DIM)),
        rng.uniform(-1, 1, size=(size, ACTION_DIM)),
        rng.uniform(size=size),
        ends & (np.arange(size) % (2 * EPISODE) >= EPISODE),
        ends,
        rng.normal(size=(size, OBSERVATION_DIM)),
        name="random",
        action_low=-1.0,
        action_high=1.0,
    ).hold_out(0.2)


def preferences(sign: float, action_chunk: int = 1, decisions: int = 2_000) -> TransitionDataset:
    """Episodes of one decision, whose observation says which sign of the actions is rewarded; actions are uniform.

    The reward of a step is linear in the action, (1 + sign * sign(s_1) * mean of a) / 2 in [0, 1]. Any policy that
    clones the data, by samples or by the mean action, therefore gets `CLONED_REWARD`; the best policy gets 1. What a
    policy gets with one sign it lacks with the other.

    Args:
        sign: 1 or -1.
        action_chunk: Steps of a decision.
        decisions: Number of episodes.
    """
    rng = np.random.default_rng(0)
    observations = np.repeat(rng.uniform(-1, 1, size=(decisions, OBSERVATION_DIM)), action_chunk, axis=0)
    actions = rng.uniform(-1, 1, size=(decisions * action_chunk, ACTION_DIM))
    ends = np.arange(len(actions)) % action_chunk == action_chunk - 1
    rewards = (1.0 + sign * np.sign(observations[:, 0]) * actions.mean(axis=1)) / 2.0
    return TransitionDataset.from_arrays(
        observations, actions, rewards, ends, ends, observations, name="preferences", action_low=-1.0, action_high=1.0
    )


@torch.no_grad()
def mean_reward(actor: Actor, sign: float, decisions: int = 1_000) -> float:
    """Mean reward of a step when an actor decides for fresh observations of `preferences` with this sign."""
    rng = np.random.default_rng(1)
    observations = torch.from_numpy(rng.uniform(-1, 1, size=(decisions, OBSERVATION_DIM))).float()
    noise = torch.from_numpy(rng.standard_normal((decisions, *actor.noise_shape))).float()
    preferred = sign * observations[:, :1].sign()
    return float((1.0 + preferred * actor.act(observations, noise)).mean()) / 2.0
