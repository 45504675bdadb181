"""Environments that do what none should; registered by importing this module."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np

from tests.environments import Array, CountdownEnv

SUCCESSES: dict[str, object] = {
    "text": "yes",
    "list": [True, False],
    "dict": {"a": 1},
    "nan": float("nan"),
    "nothing": None,
    "three": 3,
    "half": np.float32(0.5),
    "digit": "1",
    "words": np.array(["yes"]),
}
REPORTS: dict[str, tuple[Any, Any]] = {  # terminated and reward
    "terminated text": ("False", 1.0),
    "terminated nothing": (None, 1.0),
    "terminated nan": (float("nan"), 1.0),
    "reward text": (True, "1"),
    "reward nothing": (True, None),
    "reward of 1e308": (False, 1e308),
    "rewards": (True, np.ones(2)),
}
FAULTS = ("panic", "exit", "exit at reset", "close", "exit at close", "endless", *SUCCESSES, *REPORTS)


class PanicError(BaseException):
    """As an extension in Rust raises it."""


class FaultyEnv(CountdownEnv):
    """A countdown with a fault of `FAULTS`."""

    def __init__(self, kind: str, render_mode: str | None = None) -> None:
        super().__init__(observation_dim=3, bound=2.0, render_mode=render_mode)
        self.kind = kind

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        if self.kind == "exit at reset":
            sys.exit("reset went wrong")
        return super().reset(seed=seed, options=options)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self.kind == "exit":
            sys.exit(0)
        if self.kind == "panic":
            raise PanicError
        observation, reward, done, truncated, info = super().step(action)
        if self.kind in SUCCESSES:
            info["success"] = SUCCESSES[self.kind]
        if self.kind in REPORTS:
            terminated, reward = REPORTS[self.kind]
            return observation, reward, terminated, truncated, info  # type: ignore[return-value]
        return observation, reward, done and self.kind != "endless", truncated, info

    def close(self) -> None:
        super().close()
        if self.kind == "close":
            raise RuntimeError("the simulator is gone")
        if self.kind == "exit at close":
            sys.exit(1)


def faulty(kind: str) -> str:
    """The id of the environment with a fault."""
    return f"tests.faulty_environments:Faulty{kind.title().replace(' ', '')}-v0"


for kind in FAULTS:
    name = faulty(kind).partition(":")[2]
    if name not in gymnasium.registry:
        gymnasium.register(
            name,
            "tests.faulty_environments:FaultyEnv",
            max_episode_steps=10**9,
            kwargs={"kind": kind},
            disable_env_checker=True,
        )
