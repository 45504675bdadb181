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
            process's death; null for nothing.
        observation_dim: size of the observations.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (Gymnasium's way)

    def __init__(
        self,
        fault: Literal["nan", "error", "hang", "death"] | None = None,
        observation_dim: int = 2,
        render_mode: str | None = None,
    ) -> None:
        self.observation_space = gymnasium.spaces.Box(-10.0, 10.0, (observation_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
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
        return np.full((16, 16, 3), min(255, 20 * self.steps), dtype=np.uint8)

    def _observe(self) -> Array:
        rest = self.observation_space.shape[0] - 2  # type: ignore[index]
        return np.array([self.steps, self.length] + [0] * rest, dtype=np.float32)


VARIANTS: dict[str, dict[str, Any]] = {
    "Countdown-v0": {},
    "CountdownNaN-v0": {"fault": "nan"},
    "Toy-v0": {"observation_dim": 3},
    "ToyNaN-v0": {"fault": "nan", "observation_dim": 3},
    "ToyError-v0": {"fault": "error", "observation_dim": 3},
    "ToyHang-v0": {"fault": "hang", "observation_dim": 3},
    "ToyDeath-v0": {"fault": "death", "observation_dim": 3},
}
for name, arguments in VARIANTS.items():
    if name not in gymnasium.registry:
        gymnasium.register(name, "tests.environments:CountdownEnv", kwargs=arguments, disable_env_checker=True)
