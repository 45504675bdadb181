"""Tiny real environments, registered by importing this module."""

from __future__ import annotations

import os
import time
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class CountdownEnv(gymnasium.Env[Array, Array]):
    """An episode of 1 to 9 steps, its length drawn at reset; reward 1 a step; success if it was even.

    Args:
        fault: what goes wrong at the second step: a reward of NaN, an error, a step that takes minutes, the
            process's death; "blind": it cannot be drawn; null for nothing.
        observation_dim: size of the observations.
        bound: largest action.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (Gymnasium's way)

    def __init__(
        self,
        fault: Literal["nan", "error", "hang", "death", "blind"] | None = None,
        observation_dim: int = 2,
        bound: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        self.observation_space = gymnasium.spaces.Box(-10.0, 10.0, (observation_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-bound, bound, (1,), np.float32)
        self.fault = fault
        self.render_mode = render_mode
        self.length = self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.length, self.steps = int(self.np_random.integers(1, 10)), 0
        return self._observe(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        fault = self.fault if self.steps == 2 else None
        reward = float("nan") if fault == "nan" else 1.0
        if fault == "error":
            raise RuntimeError("the simulation fell apart")
        if fault == "hang":
            time.sleep(100)
        if fault == "death":
            os._exit(3)
        done = self.steps >= self.length
        return self._observe(), reward, done, False, {"success": done and self.length % 2 == 0}

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """A square that is brighter with every step."""
        if self.fault == "blind":
            raise RuntimeError("no OpenGL platform library")
        return np.full((16, 16, 3), min(255, 20 * self.steps), dtype=np.uint8)

    def _observe(self) -> Array:
        rest = self.observation_space.shape[0] - 2  # type: ignore[index]
        return np.array([self.steps, self.length] + [0] * rest, dtype=np.float32)


def square_countdown(**arguments: Any) -> gymnasium.Env[Array, Array]:
    """The same with observations of rank 2."""
    return gymnasium.wrappers.ReshapeObservation(CountdownEnv(**arguments), (2, 1))


class ReachEnv(gymnasium.Env[dict[str, Array], Array]):
    """A goal-conditioned point: move to the desired goal; terminates there, which takes at least one step."""

    def __init__(self, render_mode: str | None = None) -> None:
        box = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {"observation": gymnasium.spaces.Box(-np.inf, np.inf, (3,)), "desired_goal": box, "achieved_goal": box}
        )
        self.action_space = gymnasium.spaces.Box(-0.5, 2.0, (2,), np.float32)
        self.render_mode = render_mode
        self.place = self.goal = np.zeros(2, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, size=(2, 2)).astype(np.float32)
        return self._observe(), {}

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        self.place = self.place + action
        distance = float(np.linalg.norm(self.place - self.goal))
        return self._observe(), -distance, distance < 1.0, False, {"success": distance < 1.0}

    def _observe(self) -> dict[str, Array]:
        observation = np.append(self.place, np.float32(7.0))
        return {"observation": observation, "desired_goal": self.goal.copy(), "achieved_goal": self.place.copy()}


class DiscreteObservationsEnv(CountdownEnv):
    """A countdown whose observation is a label, not numbers."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.observation_space = gymnasium.spaces.Discrete(3)  # type: ignore[assignment]

    def _observe(self) -> Array:
        return np.int64(self.steps % 3)  # type: ignore[return-value]


TOY = {"observation_dim": 3, "bound": 2.0}  # sizes and bounds of the toy dataset
VARIANTS: dict[str, dict[str, Any]] = {
    "Countdown-v0": {},
    "CountdownNaN-v0": {"fault": "nan"},
    "Toy-v0": TOY,
    "ToyNarrow-v0": TOY | {"bound": 1.0},
    "ToyNaN-v0": {"fault": "nan", **TOY},
    "ToyError-v0": {"fault": "error", **TOY},
    "ToyHang-v0": {"fault": "hang", **TOY},
    "ToyDeath-v0": {"fault": "death", **TOY},
    "ToyBlind-v0": {"fault": "blind", **TOY},
}
MAKERS = {
    **{name: ("CountdownEnv", arguments) for name, arguments in VARIANTS.items()},
    "SquareCountdown-v0": ("square_countdown", {}),
}
for name, (maker, arguments) in MAKERS.items():
    if name not in gymnasium.registry:
        gymnasium.register(
            name, f"tests.environments:{maker}", max_episode_steps=50, kwargs=arguments, disable_env_checker=True
        )
if "Reach-v0" not in gymnasium.registry:
    # Pendulum with short episodes: what is played depends on every action.
    gymnasium.register("Swing-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=20)
    gymnasium.register("Unlimited-v0", "gymnasium.envs.classic_control:PendulumEnv")
    gymnasium.register(
        "DiscreteObservations-v0", "tests.environments:DiscreteObservationsEnv", disable_env_checker=True
    )
    gymnasium.register("Reach-v0", "tests.environments:ReachEnv", disable_env_checker=True, max_episode_steps=9)
