"""Minari's datasets (Farama Foundation), by the minari package's own storage."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.checks import check_fraction
from tql_lightning.data.environment import check_env_id, environment_spec
from tql_lightning.data.flatten import action_problem, flat_space, flatten
from tql_lightning.data.sources.hdf5 import check_whole_file
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.trust.bounded import read_json
from tql_lightning.trust.text import shown

MAIN_FILE = "main_data.hdf5"
MOST_COLUMNS = 1 << 24
MOST_DIMENSIONS = 32  # of NumPy
NUMBERS = re.compile(r"bool|float(16|32|64)|u?int(8|16|32|64)")  # types of a space's bounds
EPISODE_BYTES = 100  # at least, of a file


def load_minari(
    name: str, download: bool = True, validation_fraction: float = 0.0, env_id: str | None = None
) -> TransitionDataset:
    """Loads a Minari dataset that is cached ($MINARI_DATASETS_PATH, or ~/.minari/datasets), or downloads it.

    Box observations become their columns, in order. Goal-conditioned ones become observation, then desired_goal;
    other Dicts all their parts in the order of their sorted keys. Actions are a Box of rank 1, scaled by its bounds.
    Terminations mask, truncations do not; an episode whose last step is neither is one that was cut short.
    Where the dataset states reference scores, they are the normalised score's.

    Args:
        name: the dataset's id, "mujoco/pendulum/expert-v0".
        download: fetch it if it is not cached.
        validation_fraction: share of the episodes, the last ones, held out for validation.
        env_id: Gymnasium id of the environment to evaluate in; default: the one that the dataset names for evaluation,
            or else the one that it was recorded in. Reference scores are left out, with a warning, where it is another.

    Raises:
        DatasetError: the package is missing, the dataset is unknown, damaged or cannot be fetched, or its spaces or
            arrays are not what transitions are made of. Where it is not there, the message lists what is cached.
    """
    try:
        import minari
    except ImportError as error:
        raise DatasetError("Minari's datasets need its package; pip install 'tql-lightning[minari]'") from error
    check_fraction(validation_fraction)
    source = _open(minari, name, download)
    _check_spaces(name, source)
    fields = _fields(name, source)
    metadata = source.storage.metadata
    scores = (metadata.get("ref_min_score"), metadata.get("ref_max_score"))
    from tql_lightning.system.private_api import evaluation_spec  # imports torch

    spec = evaluation_spec(source) or source.env_spec
    own_env_id = _env_id(name, spec) if env_id is None else _described(spec)  # another takes its place unchecked
    dataset = TransitionDataset.from_arrays(
        **fields,
        name=name,
        env_id=own_env_id,
        action_low=source.action_space.low,
        action_high=source.action_space.high,
        reference_scores=None if None in scores else scores,
    )
    return dataset.evaluated_in(env_id).hold_out(validation_fraction)


def is_cached(name: str) -> bool:
    """Whether Minari's folder of datasets holds one of this name; does not import the package."""
    root = os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari" / "datasets")
    return Path(root, name, "data").is_dir()


def cached_datasets() -> list[str]:
    """Ids of the Minari datasets on this computer, without damaged ones."""
    import minari

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged ones
        return sorted(minari.list_local_datasets())


def _open(minari: Any, name: str, download: bool) -> Any:
    try:
        try:
            _check_files(name)
        except FileNotFoundError:
            _fetch(minari, name, download)
            _check_files(name)
        return minari.load_dataset(name)
    except DatasetError:
        raise
    except Exception as error:  # readers of a damaged store may raise anything
        raise _damaged(name, error) from error


def _check_files(name: str) -> None:
    """Checks a cached dataset before minari opens it, which would create what the metadata name.

    Raises:
        FileNotFoundError: it is not cached.
        DatasetError: its files name or claim what they may not, or are damaged.
    """
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        folder = Path(get_dataset_path(name), "data")
    except ValueError as error:  # a malformed name, which the download refuses as well
        raise FileNotFoundError(str(error)) from error
    if not folder.exists():
        raise FileNotFoundError(folder)
    try:
        metadata = read_json(folder / "metadata.json")
        if metadata.get("data_format", "hdf5") != "hdf5":
            raise DatasetError(
                f"{name}: expected arrays in HDF5, found format {shown(metadata['data_format'])}; make it again with "
                "data_format='hdf5'"
            )
        for space in ("observation_space", "action_space"):
            if isinstance(metadata.get(space), str):
                columns = _check_space(name, json.loads(metadata[space]))
                if columns > MOST_COLUMNS:
                    found = f"{MOST_COLUMNS:,} columns, found {shown(columns)}"
                    raise DatasetError(f"{name}: {space}: expected at most {found}; fetch it again")
            else:  # the package makes the environment to ask it
                check_env_id(str(metadata.get("env_spec")))
        if (folder / MAIN_FILE).exists():
            check_whole_file(folder / MAIN_FILE)
            episodes, size = metadata.get("total_episodes", 0), (folder / MAIN_FILE).stat().st_size
            if not 0 <= episodes * EPISODE_BYTES <= size:
                raise ValueError(f"{shown(episodes)} episodes in {size:,} bytes")
    except DatasetError:
        raise
    except Exception as error:
        raise _damaged(name, error) from error


def _check_space(name: str, space: Any) -> int:
    """Columns of a space as its description claims them, before the package allocates bounds for each.

    Raises:
        DatasetError: the bounds are no numbers, or no array.
    """
    if not isinstance(space, dict):
        return 0
    kind, shape = space.get("dtype", "bool"), space.get("shape", ())
    if not isinstance(kind, str) or not NUMBERS.fullmatch(kind) or len(shape) > MOST_DIMENSIONS:
        found = f"dtype {shown(kind)} and {len(shape)} dimensions"
        raise DatasetError(f"{name}: expected a space of numbers, found {found}; fetch it again")
    inside = space.get("subspaces") or ()
    parts = inside.values() if isinstance(inside, dict) else inside
    return abs(math.prod(shape)) + sum(_check_space(name, part) for part in parts)


def _fetch(minari: Any, name: str, download: bool) -> None:
    cached = cached_datasets()
    hint = f"cached: {', '.join(cached) or 'none'}"
    close = difflib.get_close_matches(name, cached)
    if close:
        hint = f"did you mean {' or '.join(close)}? {hint}"
    if not download:
        raise DatasetError(f"{name}: expected a cached dataset of Minari, found none; {hint}")
    try:
        minari.download_dataset(name)
    except Exception as error:  # minari raises many kinds of errors for hubs, networks and names
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DatasetError(
            f"{name}: not cached, and its download failed ({first}); fetch it where there is a network with: "
            f"minari download {name}\n{hint}"
        ) from error


def _damaged(name: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"{name}: expected a whole dataset of Minari, found a damaged one ({type(error).__name__}: {error}); remove it "
        f"with: minari delete {name}, and fetch or make it again"
    )


def _check_spaces(name: str, source: Any) -> None:
    problem = action_problem(source.action_space)
    if problem is not None:
        raise DatasetError(f"{name}: actions: {problem}; policies here are for continuous actions")
    if flat_space(source.observation_space) is None:
        raise DatasetError(
            f"{name}: observations: expected a Box or a Dict of Boxes, found {source.observation_space}; choose a "
            "dataset with numbers as observations, and no pictures"
        )


def _fields(name: str, source: Any) -> dict[str, Any]:
    """Concatenates the arrays of all episodes."""
    rows: dict[str, list[NDArray[Any]]] = {}
    try:
        for episode in _counted(source.iterate_episodes()):
            observations = flatten(source.observation_space, episode.observations, (len(episode) + 1,))
            truncations = np.array(episode.truncations, dtype=bool)
            truncations[-1] |= not episode.terminations[-1]
            columns = {
                "observations": observations[:-1],
                "actions": episode.actions,
                "rewards": episode.rewards,
                "terminations": episode.terminations,
                "truncations": truncations,
                "next_observations": observations[1:],
            }
            for field, values in columns.items():
                rows.setdefault(field, []).append(np.asarray(values))
    except Exception as error:
        raise _damaged(name, error) from error
    if not rows:
        raise DatasetError(f"{name}: expected at least one episode, found none; choose another dataset")
    return {field: np.concatenate(rows.pop(field)) for field in list(rows)}


def _counted(episodes: Iterable[Any]) -> Iterable[Any]:
    """Leaves out episodes without a step."""
    return (episode for episode in episodes if len(episode))


def _described(spec: Any) -> str | None:
    """Gymnasium id of an environment, or its whole specification if it has arguments of its own; None for None."""
    import gymnasium

    if spec is None:
        return None
    registered = gymnasium.registry.get(str(spec.id))
    telling = ("kwargs", "max_episode_steps", "additional_wrappers")
    same = registered is not None and all(getattr(registered, part) == getattr(spec, part) for part in telling)
    return str(spec.id) if same else str(spec.to_json())


def _env_id(name: str, spec: Any) -> str | None:
    """`_described`, after a check that a file may have such an environment made; the id alone if it is not here.

    Args:
        name: Name of the dataset, for errors.
        spec: Gymnasium's specification; None for no environment.

    Raises:
        DatasetError: the specification names what a file may not have made.
    """
    import gymnasium

    described = _described(spec)
    try:
        try:
            environment_spec(described or "")
        except ValueError:
            if spec.id in gymnasium.registry:  # otherwise its package is missing, and the data can still be trained on
                raise
            described = str(spec.id)
        check_env_id(described)
    except ValueError as error:
        raise DatasetError(f"{name}: {error}") from error
    return described
