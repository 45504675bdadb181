"""Chooses the actions of an online phase, as a function of seed, episode and step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tql_lightning.data.checks import ACTION_LIMIT
from tql_lightning.data.counter_random import uniform
from tql_lightning.evaluation.rollout import NoiseBuffer, act_in_rows
from tql_lightning.nn.dropout import evaluation_mode
from tql_lightning.nn.policy import Actor
from tql_lightning.online.progress import Ints, Progress
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.sharding import gathered


class Explorer:
    """Acts in a process's environments with the model's `exploring_actor`, action chunks open loop.

    Args:
        model: Algorithm that is being trained.
        own: Numbers of this process's environments, (n,).
        num_envs: Number of environments of all processes; the policy's batch has a row for each.
        random_steps: First environment steps whose actions are uniform instead.
        seed: Seed of noise and of uniform actions.
    """

    def __init__(self, model: Algorithm, own: Ints, num_envs: int, random_steps: int, seed: int) -> None:
        self.model, self.own, self.num_envs, self.seed = model, own, num_envs, seed
        self.random_rounds = -(-random_steps // num_envs)
        self._noise: NoiseBuffer | None = None

    def decide(self, at: Progress, observations: NDArray[Any]) -> tuple[NDArray[np.float32], Ints]:
        """Chooses new chunks of actions where the last ones are used up.

        Args:
            at: Progress of the phase.
            observations: Observations of this process's environments, (n, n_s).

        Returns:
            Chunks (n, h, n_a), clipped like the dataset's actions, so that what is stored is what is executed; and the
            position of the action that is due in each, (n,).
        """
        chunks, steps = at.chunks[self.own], at.rounds - at.first[self.own]
        position = steps % chunks.shape[1]
        deciding = position == 0
        if deciding.any():
            if at.rounds < self.random_rounds:
                decided = self._random(at.numbers[self.own][deciding], steps[deciding], chunks[0].size)
            else:
                decided = self._act(observations, at.numbers[self.own], steps, deciding)
            chunks[deciding] = decided.reshape(-1, *chunks.shape[1:]).clip(-ACTION_LIMIT, ACTION_LIMIT)
        return chunks, position

    @torch.inference_mode()
    def _act(
        self, observations: NDArray[Any], numbers: Ints, steps: Ints, deciding: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        model, dtype = self.model, next(self.model.parameters()).dtype
        with gathered(*model.trained_networks()), evaluation_mode(model):
            actor: Actor = model.exploring_actor()
            if self._noise is None:
                self._noise = NoiseBuffer(self.seed, actor.noise_shape, len(self.own))
            noise = self._noise.at(numbers, steps)[torch.as_tensor(deciding)]
            moved = replace(
                actor, act=lambda *inputs: actor.act(*(each.to(model.device, dtype) for each in inputs)).float().cpu()
            )
            return act_in_rows(moved, observations[deciding], noise, self.own[deciding], self.num_envs)

    def _random(self, numbers: Ints, steps: Ints, size: int) -> NDArray[np.float32]:
        """Uniform actions in [-1, 1), from another stream than the noise."""
        drawn = [
            uniform(self.seed - 1, torch.tensor([step]), torch.tensor([number]), size).flatten()
            for number, step in zip(numbers.tolist(), steps.tolist(), strict=True)
        ]
        actions: NDArray[np.float32] = (2.0 * torch.stack(drawn) - 1.0).float().numpy()
        return actions
