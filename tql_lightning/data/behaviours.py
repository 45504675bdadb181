"""Scripted behaviours that datasets are collected with, for Gymnasium's classic environments."""

from __future__ import annotations

from collections.abc import Callable
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


DEFAULTS: dict[str, MakeBehaviour] = {"Pendulum-v1": weak_swing_up}
