"""Navigates OGBench's pointmaze from goal to goal along the shortest way with much noise, as in its navigate data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.collecting.behaviours import seeded_globally
from tql_lightning.data.collecting.gather import CollectEpisode, Key
from tql_lightning.data.collecting.partial import Arrays

NOISE = 0.5  # standard deviation added to a direction of length 1, as in the official data

# Environment: transitions in an episode of its official file.
MAZES = {"pointmaze-medium": 1000, "pointmaze-large": 1000, "pointmaze-giant": 2000, "pointmaze-teleport": 1000}

Cell = tuple[int, int]


def navigator(make_env: Callable[..., Any]) -> CollectEpisode:
    """Collects one episode of navigating a maze.

    An episode starts in a free cell and has a goal among the cells that are no mere hallway; when it is reached,
    another is drawn.

    Args:
        make_env: Creates the environment with the episode length set.
    """
    env = make_env(terminate_at_goal=False)
    free, turning = maze_cells(env.unwrapped.maze_map)

    def collect_episode(key: Key) -> Arrays:
        rng = np.random.default_rng(key)
        with seeded_globally(rng):  # the environment draws noise and teleports from numpy's global state
            return _navigate(env, free, turning, rng)

    return collect_episode


def maze_cells(maze_map: NDArray[np.int_]) -> tuple[list[Cell], list[Cell]]:
    """Free cells (i, j), and those among them where a way bends, branches or ends.

    Args:
        maze_map: 1 for a wall, with walls all around, (rows, columns).
    """
    free = [(int(i), int(j)) for i, j in np.argwhere(maze_map == 0)]

    def is_hallway(cell: Cell) -> bool:
        i, j = cell
        upright = (maze_map[i - 1, j], maze_map[i + 1, j])
        across = (maze_map[i, j - 1], maze_map[i, j + 1])
        return (upright, across) in (((0, 0), (1, 1)), ((1, 1), (0, 0)))

    return free, [cell for cell in free if not is_hallway(cell)]


def _navigate(env: Any, free: list[Cell], turning: list[Cell], rng: np.random.Generator) -> Arrays:
    maze = env.unwrapped
    start, goal = free[rng.integers(len(free))], turning[rng.integers(len(turning))]
    maze.action_space.seed(int(rng.integers(2**31)))  # resets take random steps
    task = {"init_ij": start, "goal_ij": goal}
    observation, _ = env.reset(seed=int(rng.integers(2**31)), options={"task_info": task})
    rows: dict[str, list[Any]] = {"observations": [], "actions": [], "terminals": [], "qpos": [], "qvel": []}
    done = False
    while not done:
        way = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)[0] - maze.get_xy()
        direction = way / (np.linalg.norm(way) + 1e-6)
        action = np.clip(direction + rng.normal(0.0, NOISE, size=2), -1.0, 1.0)
        following, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        if info["success"]:
            maze.set_goal(turning[rng.integers(len(turning))])
        values = (observation, action, done, info["prev_qpos"], info["prev_qvel"])
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
        observation = following
    return {
        name: np.asarray(values, dtype=bool if name == "terminals" else np.float32) for name, values in rows.items()
    }
