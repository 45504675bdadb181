"""Collects OGBench datasets with the package's own oracles, in the format of its official files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.collecting.behaviours import seeded_globally
from tql_lightning.data.collecting.gather import CollectEpisode, Key, gather
from tql_lightning.data.collecting.partial import Arrays, KeptEpisodes, joined
from tql_lightning.data.collecting.pointmaze import MAZES, navigator
from tql_lightning.data.sources.npz import save_npz
from tql_lightning.data.sources.ogbench import without_display_warnings
from tql_lightning.data.sources.schema import validation_path
from tql_lightning.data.transitions import DatasetError

PLAY_LENGTH = 1000  # transitions in an episode of the official play files
NOISE = 0.1  # noise of the plans, as in the official play datasets
NOISE_SMOOTHING = 0.5

# Environment: the oracles that its targets need, and the range of the probability to stack cubes.
ORACLES: dict[str, tuple[tuple[str, ...], tuple[float, float]]] = {
    "cube-single": (("cube",), (0.0, 0.0)),
    "cube-double": (("cube",), (0.0, 0.25)),
    "cube-triple": (("cube",), (0.05, 0.35)),
    "scene": (("cube", "button", "drawer", "window"), (0.5, 0.5)),
    "puzzle-3x3": (("button",), (0.5, 0.5)),
    "puzzle-4x4": (("button",), (0.5, 0.5)),
}


# Environment: kind of data, as OGBench names it.
KINDS = dict.fromkeys(ORACLES, "play") | dict.fromkeys(MAZES, "navigate")


def collect_official(
    environment: str,
    transitions: int,
    validation_transitions: int,
    seed: int,
    workers: int,
    path: Path,
    kept: KeptEpisodes | None = None,
) -> tuple[int, int]:
    """Writes a dataset and, beside it, its validation file.

    Each row holds observations, actions, terminals, qpos, qvel and, where there are buttons, button_states. An
    episode has the official number of transitions (fewer if fewer are wanted in all) and one row more, whose
    observation ends it.

    Args:
        environment: Key of ``KINDS``.
        transitions: Smallest number of transitions in the dataset; episodes are never cut.
        validation_transitions: The same for the validation file.
        seed: Seed of the episodes.
        workers: Number of processes.
        path: Path of the dataset's file.
        kept: See `gather`.

    Returns:
        Transitions and episodes in the dataset.

    Raises:
        DatasetError: the ogbench package is not installed.
    """
    try:
        import ogbench  # noqa: F401
    except ImportError as error:
        raise DatasetError(
            "environment: collecting OGBench data needs the package ogbench; pip install 'tql-lightning[ogbench]'"
        ) from error
    length = min(MAZES.get(environment, PLAY_LENGTH), transitions)
    episodes, held_out = -(-transitions // length), -(-validation_transitions // length)
    keys = [(seed, 0, number) for number in range(episodes)] + [(seed, 1, number) for number in range(held_out)]
    rows = len(keys) * (length + 1)
    gathered = gather(partial(_collector, environment, length), keys, workers, rows, kept)
    # Write the training file last, so that it never stands without its validation file.
    save_npz(validation_path(path), **joined(gathered[episodes:]))
    save_npz(path, **joined(gathered[:episodes]))
    return episodes * length, episodes


def _collector(environment: str, length: int) -> CollectEpisode:
    import gymnasium
    import ogbench  # noqa: F401  (registers the environments)

    make_env = partial(gymnasium.make, f"{environment}-v0", max_episode_steps=length + 1)
    if environment in MAZES:
        return navigator(make_env)
    with without_display_warnings():
        env = make_env(terminate_at_goal=False, mode="data_collection")
    oracles = _make_oracles(env, ORACLES[environment][0])
    stacking = ORACLES[environment][1]

    def collect_episode(key: Key) -> Arrays:
        rng = np.random.default_rng(key)
        with without_display_warnings(), seeded_globally(rng):  # the oracles draw from numpy's global state
            while True:
                episode = _play(env, oracles, stacking, rng)
                if environment != "scene" or _cube_stays_visible(episode["qpos"]):
                    return episode

    return collect_episode


def _make_oracles(env: Any, tasks: tuple[str, ...]) -> dict[str, Any]:
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    # An environment with buttons alone has nothing to grasp.
    button = partial(ButtonPlanOracle, gripper_always_closed=tasks == ("button",))
    makers = {"cube": CubePlanOracle, "button": button, "drawer": DrawerPlanOracle, "window": WindowPlanOracle}
    return {task: makers[task](env=env, noise=NOISE, noise_smoothing=NOISE_SMOOTHING) for task in tasks}


def _play(env: Any, oracles: dict[str, Any], stacking: tuple[float, float], rng: np.random.Generator) -> Arrays:
    """One episode of moving from target to target, until the time limit."""
    stacking_probability = rng.uniform(*stacking)
    observation, info = env.reset(seed=int(rng.integers(2**31)))
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(observation, info)
    rows: dict[str, list[Any]] = {}
    done = False
    while not done:
        action = np.clip(oracle.select_action(observation, info), -1.0, 1.0)
        following, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        row = {
            "observations": observation,
            "actions": action,
            "terminals": done,
            "qpos": info["prev_qpos"],
            "qvel": info["prev_qvel"],
        }
        if "prev_button_states" in info:
            row["button_states"] = info["prev_button_states"]
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
        observation = following
        if oracle.done:
            target = env.unwrapped.set_new_target(p_stack=stacking_probability)
            oracle = oracles[target[1]["privileged/target_task"]]
            oracle.reset(*target)
    kinds = {"terminals": bool, "button_states": np.int64}
    return {name: np.asarray(values, dtype=kinds.get(name, np.float32)) for name, values in rows.items()}


def _cube_stays_visible(qpos: NDArray[np.float32]) -> bool:
    """Whether scene's cube never leaves the table's sides, as in the official data; elsewhere goals are ambiguous.

    Args:
        qpos: joint positions, (rows, joints); the cube's (x, y, z) in metres are columns 14 to 16.
    """
    y, z = qpos[:, 15], qpos[:, 16]
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return bool((y < 0.29).all() and ((y > -0.3) | in_drawer).all())
