"""OGBench environments whose episodes begin near the goal or at it; registered by importing this module."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np
import ogbench  # noqa: F401  (registers)

CUBE = slice(14, 17)  # its place among a manipulation environment's joint positions


class NearGoal(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Every other episode begins at the goal, the others beside it; keeps the joint positions before every step."""

    def __init__(self, env_id: str) -> None:
        super().__init__(gymnasium.make(env_id, max_episode_steps=15))
        self.before: list[Any] = []
        self.episodes = 0
        MADE.append(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        _, info = super().reset(seed=seed, options=options)
        env: Any = self.env.unwrapped
        beside = np.array([0.09, 0.0, 0.0]) * (self.episodes % 2)
        self.episodes += 1
        if hasattr(env, "set_xy"):
            env.set_xy(np.asarray(env.cur_goal_xy) + 14.0 * beside[:2])
            return env.get_ob(), info
        env._data.qpos[CUBE] = env._data.mocap_pos[0] + beside
        mujoco.mj_forward(env._model, env._data)
        env.post_step()  # looks for success
        return env.compute_observation(), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        env: Any = self.env.unwrapped
        self.before.append(np.array((env.data if hasattr(env, "data") else env._data).qpos))
        return super().step(action)


MADE: list[NearGoal] = []
TASKS = {"NearCube-v0": "cube-single-singletask-task1-v0", "NearMaze-v0": "pointmaze-medium-singletask-task1-v0"}
for name, task in TASKS.items():
    if name not in gymnasium.registry:
        gymnasium.register(name, lambda task=task, **_: NearGoal(task), max_episode_steps=15, disable_env_checker=True)
