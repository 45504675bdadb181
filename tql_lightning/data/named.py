"""Loads a dataset of any format by its name, and converts it to our own formats."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tql_lightning.data.checks import DatasetError, check_fraction
from tql_lightning.data.environment import check_environment
from tql_lightning.data.sources.d4rl import load_d4rl, require_hdf5
from tql_lightning.data.sources.d4rl_scores import REFERENCE_SCORES
from tql_lightning.data.sources.minari import is_cached, load_minari
from tql_lightning.data.sources.npy_folder import (
    load_npy_folder,
    prepare_npy_folder,
    require_npy_folder,
    save_npy_folder,
)
from tql_lightning.data.sources.npz import load_npz, require_npz, save_npz
from tql_lightning.data.sources.ogbench import DATA_KINDS, is_single_task, load_ogbench
from tql_lightning.data.sources.schema import fields_of, validation_path
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.system.files import require_writable

MINARI = "minari:"
MINARI_ID = re.compile(r"([\w-]+/)*[\w-]+-v\d+")
MOST_SHOWN = 100  # characters of a long path in a message
Kind = Literal["minari", "ogbench", "d4rl", "npz", "folder"]


def kind_of(name: str) -> Kind:
    """The format that a name stands for; the first that fits.

    1. ``minari:ID``: Minari's dataset ID, cached or downloaded; also without "minari:" where the ID has a namespace
       ("mujoco/hopper/medium-v0"), or is cached, and is no path.
    2. An OGBench name with ``-singletask``: ``cube-double-play-singletask-task2-v0``.
    3. A path ending in ``.hdf5`` or ``.h5``: D4RL's file.
    4. A path ending in ``.npz``: our own file.
    5. The path of a folder: our own .npy files.

    Raises:
        DatasetError: None fits, or the path cannot be read.
    """
    if name.startswith(MINARI):
        return "minari"
    if is_single_task(name):
        return "ogbench"
    path = Path(name).expanduser()
    _check_path(path)
    if MINARI_ID.fullmatch(name) and not path.exists() and ("/" in name or is_cached(name)):
        return "minari"
    kinds: dict[str, Kind] = {".hdf5": "d4rl", ".h5": "d4rl", ".npz": "npz"}
    if path.suffix in kinds:
        return kinds[path.suffix]
    if path.is_dir():
        return "folder"
    hint = "give the path of this D4RL dataset's .hdf5 file" if name in REFERENCE_SCORES else "check the name"
    if name.split("-")[0] in DATA_KINDS and name.endswith("-v0"):
        hint = f"for a single task of OGBench: {name.removesuffix('-v0')}-singletask-task1-v0"
    raise DatasetError(
        f"{name}: expected minari:ID, an OGBench name such as cube-double-play-singletask-task2-v0, a path ending in "
        f".npz or .hdf5, or a folder of .npy files, found none of these; {hint}"
    )


def is_dataset_name(text: str) -> bool:
    """Whether a text is a dataset's name or path, and not a class path."""
    try:
        kind_of(text)
    except (DatasetError, OSError):  # a class path, perhaps longer than a path may be
        return False
    return True


def require_there(kind: Kind, path: Path) -> None:
    """Checks, without opening it, that a dataset's file or folder exists; others than paths pass.

    Raises:
        DatasetError: It does not.
    """
    checks = {"npz": require_npz, "d4rl": require_hdf5, "folder": require_npy_folder}
    if kind in checks:
        checks[kind](path.expanduser())


def _check_path(path: Path) -> None:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return  # the loader reports it
    except (OSError, ValueError) as error:  # too long, not allowed, a loop of links; or a zero byte in it
        reason = getattr(error, "strerror", None) or str(error)
        shown = f"{str(path)[:MOST_SHOWN]}..." if len(str(path)) > MOST_SHOWN else str(path)
        raise DatasetError(f"{shown}: expected a dataset's name or path, found none ({reason}); check it") from error


def load_dataset(
    name: str,
    validation_fraction: float = 0.0,
    env_id: str | None = None,
    keys: dict[str, str] | None = None,
    max_episode_steps: int | None = None,
) -> TransitionDataset:
    """Loads a dataset by its name.

    Args:
        name: "minari:mujoco/hopper/medium-v0", "cube-double-play-singletask-task2-v0", or the path of an .npz file, a
            folder of .npy files or a D4RL .hdf5 file.
        validation_fraction: Share of the episodes, from the end, to hold out; 0 for a dataset with a validation part.
        env_id: Gymnasium id of the environment to evaluate in, such as "Hopper-v5"; default: the dataset's.
        keys: Our name -> the file's name, of arrays under other names in an .npz file or folder: {observations: obs}.
        max_episode_steps: Time limit that splits the ``dones`` of an .npz file or folder into terminations and
            truncations (0: all are terminations), or that cuts the episodes of a D4RL file without timeouts.

    Raises:
        DatasetError: The name is unknown, or the dataset cannot be used.
    """
    kind = kind_of(name)
    check_fraction(validation_fraction)
    if kind == "npz":
        return load_npz(name, validation_fraction, keys, max_episode_steps, env_id)
    if kind == "folder":
        return load_npy_folder(name, validation_fraction, False, keys, max_episode_steps, env_id)
    if keys is not None:
        raise DatasetError(f"keys: expected none for {name}, found {keys}; they name arrays of .npz files and folders")
    if kind == "d4rl":
        return load_d4rl(name, None, env_id, max_episode_steps, validation_fraction=validation_fraction)
    if max_episode_steps is not None:
        raise DatasetError(
            f"max_episode_steps: expected none, as {name} says which episodes were cut, found {max_episode_steps}"
        )
    if kind == "minari":
        return load_minari(name.removeprefix(MINARI), validation_fraction=validation_fraction, env_id=env_id)
    if env_id is not None:
        raise DatasetError(f"env_id: expected none, as OGBench's task is the environment, found {env_id}; leave it out")
    dataset = load_ogbench(name)
    if validation_fraction and dataset.validation is not None:
        raise DatasetError(
            f"validation_fraction: expected 0, as OGBench's validation file is there, found {validation_fraction}; "
            "leave it out"
        )
    return dataset.hold_out(validation_fraction)


def convert(
    name: str,
    output: str,
    overwrite: bool = False,
    keys: dict[str, str] | None = None,
    max_episode_steps: int | None = None,
) -> list[tuple[Path, TransitionDataset]]:
    """Writes any dataset as an .npz file or a folder of .npy files, and its validation part to ``OUTPUT-val``.

    The same transitions load from it. A folder of .npy files is converted block by block.

    Args:
        name: Name as in `kind_of`; a folder may have any numeric dtypes, and may lack next observations.
        output: Path ending in .npz, or without an ending for a folder; it appears only once it is complete.
        overwrite: Whether to replace an existing file; folders are never replaced.
        keys: Our name -> the file's name, as of `load_dataset`.
        max_episode_steps: Time limit of the episodes, as of `load_dataset`.

    Returns:
        Written paths with their transitions.

    Raises:
        DatasetError: The dataset cannot be used or does not fit its environment, or ``output`` cannot be written.
    """
    target = Path(output).expanduser()
    if target.suffix not in ("", ".npz"):
        raise DatasetError(f"output: expected a path ending in .npz, or a folder's without an ending, found {output}")
    for path in (target, validation_path(target)):
        if path.exists() and not (overwrite and path.is_file()):
            remedy = "remove the folder" if path.is_dir() else "pass --overwrite=true"
            raise DatasetError(f"output: {path} exists already; {remedy}, or choose another")
    require_writable(target)
    if kind_of(name) != "folder":
        return _write(load_dataset(name, keys=keys, max_episode_steps=max_episode_steps), target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        folder = Path(name).expanduser()
        given = Path(scratch), keys, max_episode_steps
        dataset = prepare_npy_folder(folder, *given)
        if validation_path(folder).is_dir():
            dataset = replace(dataset, validation=prepare_npy_folder(validation_path(folder), *given))
        return _write(dataset, target)


def _write(dataset: TransitionDataset, target: Path) -> list[tuple[Path, TransitionDataset]]:
    check_environment(dataset)  # a copy of data that fit no environment would be of no use
    parts = {target: dataset, validation_path(target): dataset.validation}
    if dataset.validation is None:
        validation_path(target).unlink(missing_ok=True)  # of the replaced dataset
    written = [(path, part) for path, part in parts.items() if part is not None]
    for path, part in reversed(written):  # validation first, so that the dataset never stands without it
        if target.suffix:
            arrays, settings = fields_of(part)
            save_npz(path, **arrays, **settings)
        else:
            save_npy_folder(path, part)
    return written
