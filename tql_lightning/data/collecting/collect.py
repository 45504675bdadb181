"""Collects offline datasets in real environments with scripted behaviour."""

from __future__ import annotations

import importlib
import inspect
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import count
from operator import index
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from tql_lightning.data.collecting.behaviours import DEFAULTS, MakeBehaviour, random_behaviour
from tql_lightning.data.collecting.gather import CollectEpisode, Key, gather
from tql_lightning.data.collecting.ogbench import KINDS, collect_official
from tql_lightning.data.collecting.partial import Arrays, KeptEpisodes, joined
from tql_lightning.data.flatten import action_problem, flat_space, flatten
from tql_lightning.data.sources.npz import save_npz
from tql_lightning.data.sources.ogbench import dataset_file
from tql_lightning.data.sources.schema import validation_path
from tql_lightning.data.transitions import DatasetError
from tql_lightning.system.files import require_writable

DATASETS_VARIABLE = "TQL_DATASETS"


@dataclass(frozen=True)
class Collected:
    """Result of a collection.

    Attributes:
        path: Path of the dataset's file.
        transitions: Number of transitions in the file.
        episodes: Number of episodes in the file.
        mean_return: Mean return of the episodes; None for a file without rewards (OGBench adds them by task).
        best_return: Largest return; None as above.
    """

    path: Path
    transitions: int
    episodes: int
    mean_return: float | None = None
    best_return: float | None = None


def datasets_folder() -> Path:
    """Folder of collected datasets: the environment variable TQL_DATASETS, or ``datasets`` in the working folder."""
    return Path(os.environ.get(DATASETS_VARIABLE) or "datasets").expanduser()


def collect(
    environment: str,
    transitions: int = 50_000,
    seed: int = 0,
    workers: int = 2,
    output: str | None = None,
    behaviour: str | MakeBehaviour | None = None,
    overwrite: bool = False,
    validation_transitions: int | None = None,
) -> Collected:
    """Collects a dataset from a real environment with scripted behaviour.

    The same seed gives the same data whatever the number of workers. The file appears only when whole. Episodes of
    an interrupted collection stay in a folder beside it (``<output>.partial``), and the same call continues there:
    the file is then the one that an uninterrupted call makes.

    Args:
        environment: "cube-single", "cube-double", "cube-triple", "scene", "puzzle-3x3" or "puzzle-4x4" for an
            OGBench play dataset, "pointmaze-medium", "-large", "-giant" or "-teleport" for a navigate dataset, in the
            official format (with a validation file beside it); or the id of any Gymnasium environment with Box
            actions, and observations in a Box or a Dict of them ("Pendulum-v1", "Reacher-v5").
        transitions: Smallest number of transitions; episodes are never cut.
            OGBench's episodes have 1,000 (pointmaze-giant's 2,000), or
            so many if that is less; a Gymnasium episode is cut short (a truncation) if it alone comes to so many.
        seed: Seed of environments and behaviour.
        workers: Number of processes.
        output: File to write (.npz). Default: where OGBench keeps its datasets, or for others
            ``$TQL_DATASETS/ENVIRONMENT.npz`` (``datasets/`` if that variable is not set).
        behaviour: Function (action_space, rng) that returns a function from observation to action in the
            environment's units, or its import path. Default: weak swing-up for Pendulum-v1, clumsy climbing for
            MountainCarContinuous-v0, random elsewhere.
        overwrite: Whether to replace an existing file, and episodes that were kept with other settings.
        validation_transitions: Smallest number of transitions in OGBench's validation file; default: a tenth.

    Raises:
        DatasetError: an argument is wrong, or the file exists already, or episodes with other settings do.
    """
    smallest = {"transitions": 1, "workers": 1, "seed": 0, "validation_transitions": 1}
    given = {"transitions": transitions, "workers": workers, "seed": seed}
    if validation_transitions is not None:
        given["validation_transitions"] = validation_transitions
    for name, value in given.items():
        if value < smallest[name]:
            raise DatasetError(f"{name}: expected at least {smallest[name]}, found {value}")
    transitions, seed, workers = map(index, (transitions, seed, workers))
    official = environment in KINDS
    if official and behaviour is not None:
        raise DatasetError(f"behaviour: OGBench's {environment} is collected with its own oracles; leave it out")
    if not official and validation_transitions is not None:
        raise DatasetError("validation_transitions: only for OGBench; hold out with load_npz's validation_fraction")
    if official:
        default = dataset_file(f"{environment}-{KINDS[environment]}")
    else:
        default = datasets_folder() / f"{environment}.npz"
    path = Path(output).expanduser() if output else default
    if path.suffix != ".npz":
        raise DatasetError(f"output: expected a file ending in .npz, found {path}")
    for file in (path, validation_path(path)) if official else (path,):
        if file.exists() and not overwrite:
            raise DatasetError(f"output: {file} exists already; pass --overwrite=true, or another --output")
    require_writable(path)
    settings = {"environment": environment, "transitions": transitions, "seed": seed, "versions": _versions()}
    if official:
        held_out = validation_transitions or max(1, transitions // 10)
        kept = KeptEpisodes(path, settings | {"validation_transitions": held_out}, overwrite)
        collected = Collected(path, *collect_official(environment, transitions, held_out, seed, workers, path, kept))
    else:
        bounds = _action_bounds(environment)
        make = import_behaviour(behaviour) if isinstance(behaviour, str) else behaviour
        make = make or DEFAULTS.get(environment, random_behaviour)
        kept = KeptEpisodes(path, settings | {"behaviour": _description(make)}, overwrite)
        collect_episodes = partial(_collector, environment, make, transitions)
        episodes = gather(collect_episodes, ((seed, number) for number in count()), workers, transitions, kept)
        collected = _save(path, environment, bounds, episodes)
    kept.discard()
    return collected


def _save(path: Path, env_id: str, bounds: tuple[Any, Any], episodes: list[Arrays]) -> Collected:
    low, high = bounds
    arrays = joined(episodes)
    save_npz(path, **arrays, env_id=np.array(env_id), action_low=low, action_high=high)
    returns = [episode["rewards"].sum(dtype=np.float64) for episode in episodes]
    return Collected(path, len(arrays["rewards"]), len(episodes), float(np.mean(returns)), float(np.max(returns)))


def _versions() -> str:
    """Versions of the packages that episodes depend on."""
    found = []
    for package in ("tql-lightning", "numpy", "gymnasium", "mujoco", "ogbench"):
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found)


def _description(behaviour: MakeBehaviour) -> str:
    """A behaviour's name, and a checksum of its file: episodes of a changed behaviour must not be mixed."""
    made_by = behaviour if isinstance(behaviour, FunctionType | type) else type(behaviour)
    named = f"{behaviour.__module__}.{behaviour.__qualname__}" if made_by is behaviour else repr(behaviour)
    with suppress(TypeError, OSError):  # without a file, the name must suffice
        return f"{named} ({zlib.crc32(Path(inspect.getfile(made_by)).read_bytes()):08x})"
    return named


def _action_bounds(env_id: str) -> tuple[Any, Any]:
    """Bounds of an environment's actions, (n_a,) each; rejects environments that no dataset can be made of."""
    import gymnasium

    try:
        env = gymnasium.make(env_id)
        observations, actions = env.observation_space, env.action_space
    except (gymnasium.error.Error, ImportError) as error:
        raise DatasetError(f"environment: {error}; OGBench's are {', '.join(KINDS)}") from error
    except (Exception, SystemExit) as error:  # of any simulator
        raise DatasetError(f"environment: {env_id} failed: {type(error).__name__}: {error}") from error
    with suppress(Exception, SystemExit):  # it is not needed again
        env.close()
    if flat_space(observations) is None:
        raise DatasetError(
            f"environment: {env_id}: expected observations in a Box or a Dict of them, and no pictures, found "
            f"{observations}"
        )
    problem = action_problem(actions)
    if problem is not None:
        raise DatasetError(f"environment: {env_id}: {problem}")
    assert isinstance(actions, gymnasium.spaces.Box)
    return actions.low, actions.high


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


def _collector(env_id: str, make_behaviour: MakeBehaviour, longest: int) -> CollectEpisode:
    import gymnasium

    env = gymnasium.make(env_id)
    fields = ("observations", "actions", "rewards", "terminations", "truncations", "next_observations")
    flags = {"terminations": bool, "truncations": bool}
    columns = partial(flatten, env.observation_space)

    def collect_episode(key: Key) -> Arrays:
        rng = np.random.default_rng(key)
        rows: dict[str, list[Any]] = {name: [] for name in fields}
        act = make_behaviour(env.action_space, rng)
        observation, _ = guarded(lambda: env.reset(seed=int(rng.integers(2**31))))
        done = False
        while not done:
            action = act(observation)
            following, reward, terminated, truncated, _ = guarded(partial(env.step, action))
            truncated = truncated or len(rows["rewards"]) + 1 == longest
            row = (columns(observation), action, reward, terminated, truncated, columns(following))
            for name, value in zip(fields, row, strict=True):
                rows[name].append(np.array(value))  # copied, because some environments reuse an array
            observation, done = following, terminated or truncated
        return {name: np.asarray(values, dtype=flags.get(name, np.float32)) for name, values in rows.items()}

    def guarded(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Exception, SystemExit) as error:  # of any simulator
            raise DatasetError(f"environment: {env_id} failed: {type(error).__name__}: {error}") from error

    return collect_episode
