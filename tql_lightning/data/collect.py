"""Makes offline datasets from real environments with scripted behaviour."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tql_lightning.data.behaviours import DEFAULTS, MakeBehaviour, random_behaviour
from tql_lightning.data.sources.npz import save_npz
from tql_lightning.data.sources.ogbench import dataset_file
from tql_lightning.data.transitions import DatasetError

Arrays = dict[str, NDArray[Any]]
CollectEpisode = Callable[[int], Arrays]

DATASETS_VARIABLE = "TQL_DATASETS"
OGBENCH_EPISODE = 1000  # transitions in an episode of the official play datasets


@dataclass(frozen=True)
class Collected:
    """What a collection wrote.

    Attributes:
        path: the dataset file.
        transitions: in that file.
        episodes: in that file.
        mean_return: over the episodes; None where the file holds no rewards (OGBench adds them by task).
        best_return: likewise.
    """

    path: Path
    transitions: int
    episodes: int
    mean_return: float | None = None
    best_return: float | None = None


def datasets_folder() -> Path:
    """Where collected datasets go: the environment variable TQL_DATASETS, or ``datasets`` in the working folder."""
    return Path(os.environ.get(DATASETS_VARIABLE, "datasets"))


def collect(
    environment: str,
    transitions: int = 50_000,
    seed: int = 0,
    workers: int = 2,
    output: str | None = None,
    behaviour: str | None = None,
    overwrite: bool = False,
) -> Collected:
    """Collects a dataset from a real environment with scripted behaviour.

    The same seed gives the same data whatever the number of workers. The file appears only when whole.

    Args:
        environment: "cube-single", "cube-double", "cube-triple", "scene", "puzzle-3x3" or "puzzle-4x4" for an
            OGBench play dataset in its official format (with a validation file of a tenth beside it), or the id of
            any Gymnasium environment with Box actions ("Pendulum-v1").
        transitions: at least so many, in whole episodes.
        seed: of environments and behaviour.
        workers: processes that collect.
        output: file to write (.npz). Default: where OGBench keeps its datasets, or for others
            ``$TQL_DATASETS/ENVIRONMENT.npz`` (``datasets/`` if that variable is not set).
        behaviour: import path of a function (action_space, rng) that returns a function from observation to
            action. Default: weak swing-up for Pendulum-v1, random actions elsewhere.
        overwrite: replace an existing file.

    Raises:
        DatasetError: an argument is wrong, or the file exists already.
    """
    for name, value in (("transitions", transitions), ("workers", workers)):
        if value < 1:
            raise DatasetError(f"{name}: expected at least 1, found {value}")
    play = environment in OGBENCH_ORACLES
    if play and behaviour is not None:
        raise DatasetError(f"behaviour: OGBench's {environment} is collected with its own oracles; leave it out")
    default = dataset_file(f"{environment}-play") if play else datasets_folder() / f"{environment}.npz"
    path = Path(output) if output else default
    if path.suffix != ".npz":
        raise DatasetError(f"output: expected a file ending in .npz, found {path}")
    if path.exists() and not overwrite:
        raise DatasetError(f"output: {path} exists already; pass --overwrite=true, or another --output")
    if play:
        return _collect_play(environment, transitions, seed, workers, path)
    return _collect_gymnasium(environment, transitions, seed, workers, path, behaviour)


# ---------------------------------------------------------------------- Gymnasium


def _collect_gymnasium(
    env_id: str, transitions: int, seed: int, workers: int, path: Path, behaviour: str | None
) -> Collected:
    import gymnasium

    try:
        env = gymnasium.make(env_id)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise DatasetError(f"environment: {error}; OGBench's are {', '.join(OGBENCH_ORACLES)}") from error
    actions = env.action_space
    env.close()
    if not isinstance(actions, gymnasium.spaces.Box):
        raise DatasetError(f"environment: {env_id}: expected Box actions, found {actions}")
    if behaviour:
        import_behaviour(behaviour)  # a bad path fails here, before any process starts
    arrays, episodes = _gather(
        partial(_gymnasium_collector, env_id, behaviour), lambda episode: (seed, episode), transitions, workers
    )
    save_npz(path, **arrays, env_id=np.array(env_id), action_low=actions.low, action_high=actions.high)
    ends = np.flatnonzero(arrays["terminations"] | arrays["truncations"])
    returns = np.diff(np.cumsum(arrays["rewards"])[ends], prepend=0.0)
    return Collected(path, len(arrays["rewards"]), episodes, float(returns.mean()), float(returns.max()))


def import_behaviour(path: str) -> MakeBehaviour:
    """The function at an import path "package.module.name".

    Raises:
        DatasetError: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        make: MakeBehaviour = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DatasetError(
            f"behaviour: expected an import path package.module.function, found {path} ({error})"
        ) from error
    return make


def _gymnasium_collector(env_id: str, behaviour: str | None) -> Callable[[tuple[int, int]], Arrays]:
    import gymnasium

    env = gymnasium.make(env_id)
    make_behaviour = import_behaviour(behaviour) if behaviour else DEFAULTS.get(env_id, random_behaviour)

    def episode(key: tuple[int, int]) -> Arrays:
        rng = np.random.default_rng(key)
        rows: dict[str, list[Any]] = {name: [] for name in GYMNASIUM_FIELDS}
        act = make_behaviour(env.action_space, rng)
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        done = False
        while not done:
            action = act(observation)
            following, reward, terminated, truncated, _ = env.step(action)
            row = (observation, action, reward, terminated, truncated, following)
            for name, value in zip(GYMNASIUM_FIELDS, row, strict=True):
                rows[name].append(value)
            observation, done = following, terminated or truncated
        flags = {"terminations": bool, "truncations": bool}
        return {name: np.asarray(values, dtype=flags.get(name, np.float32)) for name, values in rows.items()}

    return episode


GYMNASIUM_FIELDS = ("observations", "actions", "rewards", "terminations", "truncations", "next_observations")


# ---------------------------------------------------------------------- OGBench's manipulation environments

# Environment: the oracles that its targets need, and the range of the probability to stack cubes.
OGBENCH_ORACLES: dict[str, tuple[tuple[str, ...], tuple[float, float]]] = {
    "cube-single": (("cube",), (0.0, 0.0)),
    "cube-double": (("cube",), (0.0, 0.25)),
    "cube-triple": (("cube",), (0.05, 0.35)),
    "scene": (("cube", "button", "drawer", "window"), (0.5, 0.5)),
    "puzzle-3x3": (("button",), (0.5, 0.5)),
    "puzzle-4x4": (("button",), (0.5, 0.5)),
}


def _collect_play(environment: str, transitions: int, seed: int, workers: int, path: Path) -> Collected:
    try:
        import ogbench  # noqa: F401
    except ImportError as error:
        raise DatasetError(
            "environment: collecting OGBench data needs the package ogbench; pip install 'tql-lightning[ogbench]'"
        ) from error
    length = min(OGBENCH_EPISODE, transitions)
    make = partial(_play_collector, environment, length)
    episodes = -(-transitions // length)
    arrays, _ = _gather(make, lambda episode: (seed, 0, episode), episodes * (length + 1), workers)
    held_out, _ = _gather(make, lambda episode: (seed, 1, episode), max(1, episodes // 10) * (length + 1), workers)
    # The official files come in pairs; the training file comes last, so that it never stands alone half made.
    save_npz(path.with_name(f"{path.stem}-val.npz"), **held_out)
    save_npz(path, **arrays)
    return Collected(path, episodes * length, episodes)


def _play_collector(environment: str, length: int) -> Callable[[tuple[int, ...]], Arrays]:
    """Play data as the official script makes it, but for its retries of odd states in scene."""
    import gymnasium
    import ogbench  # noqa: F401  (registers the environments)
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    env = gymnasium.make(
        f"{environment}-v0", terminate_at_goal=False, mode="data_collection", max_episode_steps=length + 1
    )
    noise: dict[str, Any] = {"env": env, "noise": 0.1, "noise_smoothing": 0.5}
    tasks, stacking = OGBENCH_ORACLES[environment]
    makers = {"cube": CubePlanOracle, "drawer": DrawerPlanOracle, "window": WindowPlanOracle}
    oracles = {task: makers[task](**noise) for task in tasks if task in makers}
    if "button" in tasks:
        oracles["button"] = ButtonPlanOracle(**noise, gripper_always_closed=tasks == ("button",))
    stacks = "cube" in tasks
    unwrapped: Any = env.unwrapped

    def episode(key: tuple[int, ...]) -> Arrays:
        rng = np.random.default_rng(key)
        np.random.seed(int(rng.integers(2**31)))  # noqa: NPY002  (the oracles draw from numpy's global state)
        target = {"p_stack": rng.uniform(*stacking)} if stacks else {}
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
            if oracle.done:
                target_observation, target_info = unwrapped.set_new_target(**target)
                oracle = oracles[target_info["privileged/target_task"]]
                oracle.reset(target_observation, target_info)
            observation = following
        kinds = {"terminals": bool, "button_states": np.int64}
        return {name: np.asarray(values, dtype=kinds.get(name, np.float32)) for name, values in rows.items()}

    return episode


# ---------------------------------------------------------------------- processes

_episode: Callable[[tuple[int, ...]], Arrays] | None = None


def _start_worker(make: Callable[[], Callable[[Any], Arrays]]) -> None:
    global _episode  # noqa: PLW0603  (one environment per worker process)
    _episode = make()


def _run_episode(key: tuple[int, ...]) -> Arrays:
    assert _episode is not None
    return _episode(key)


def _gather(
    make: Callable[[], Callable[[Any], Arrays]], key: Callable[[int], tuple[int, ...]], rows: int, workers: int
) -> tuple[Arrays, int]:
    """Episodes 0, 1, ... in order, until they have so many rows; (arrays, episodes)."""
    episodes: list[Arrays] = []
    done = 0
    with tqdm(total=rows, unit="row", desc="collecting", unit_scale=True) as bar:
        for episode in _episodes(make, key, workers):
            size = len(episode["actions"])
            episodes.append(episode)
            bar.update(min(size, rows - done))
            done += size
            if done >= rows:
                break
    return {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}, len(episodes)


def _episodes(
    make: Callable[[], Callable[[Any], Arrays]], key: Callable[[int], tuple[int, ...]], workers: int
) -> Iterator[Arrays]:
    number = 0
    if workers == 1:
        run = make()
        while True:
            yield run(key(number))
            number += 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(make,)) as pool:
        pending: deque[Future[Arrays]] = deque()
        try:
            while True:
                while len(pending) < 2 * workers:
                    pending.append(pool.submit(_run_episode, key(number)))
                    number += 1
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
