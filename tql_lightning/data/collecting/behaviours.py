"""Scripted behaviours for collecting datasets in Gymnasium's classic environments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Behaviour = Callable[[Array], Array]
MakeBehaviour = Callable[[Any, np.random.Generator], Behaviour]


def random_behaviour(action_space: Any, rng: np.random.Generator) -> Behaviour:
    """Uniform actions within the bounds of a Box action space."""
    low, high = action_space.low, action_space.high

    def act(_: Array) -> Array:
        action: Array = rng.uniform(low, high).astype(np.float32)
        return action

    return act


def weak_swing_up(action_space: Any, rng: np.random.Generator) -> Behaviour:
    """Bad ways to swing up Gymnasium's Pendulum-v1: random, or weakly and noisily pumping energy.

    Three episodes in ten act at random. The others push along the direction of motion with a weak torque
    and much noise, and half of them brake clumsily near the top. None of them balances.
    """
    low, high = float(action_space.low[0]), float(action_space.high[0])
    if rng.random() < 0.3:
        return random_behaviour(action_space, rng)
    torque = rng.uniform(0.1, 0.5) * high
    noise = rng.uniform(0.7, 1.5) * high
    braking = rng.uniform(0.0, 7.5) if rng.random() < 0.5 else 0.0

    def act(observation: Array) -> Array:
        cosine, sine, speed = (float(value) for value in observation)
        near_top = cosine > 0.8 and braking > 0.0
        wanted = -braking * (sine + 0.3 * speed) if near_top else torque * np.sign(speed)
        action: Array = np.clip([wanted + rng.normal() * noise], low, high).astype(np.float32)
        return action

    return act


def clumsy_climb(action_space: Any, rng: np.random.Generator) -> Behaviour:
    """Drives Gymnasium's MountainCarContinuous-v0 up its hill, where random actions never get.

    Two episodes in ten act at random. The others push along the direction of motion, with a power and a noise of
    their own: strong ones arrive in some 100 steps, at a cost; weak or noisy ones late or not at all.
    """
    low, high = float(action_space.low[0]), float(action_space.high[0])
    if rng.random() < 0.2:
        return random_behaviour(action_space, rng)
    power = rng.uniform(0.0, 0.8) * high
    noise = rng.uniform(0.5, 2.0) * high

    def act(observation: Array) -> Array:
        wanted = power * np.sign(float(observation[1])) + rng.normal() * noise
        action: Array = np.clip([wanted], low, high).astype(np.float32)
        return action

    return act


DEFAULTS: dict[str, MakeBehaviour] = {"Pendulum-v1": weak_swing_up, "MountainCarContinuous-v0": clumsy_climb}


@contextmanager
def seeded_globally(rng: np.random.Generator) -> Iterator[None]:
    """Seeds numpy's global state for code that draws from it, and restores the state afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(rng.integers(2**31)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
