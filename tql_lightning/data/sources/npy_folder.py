"""Memory-mapped folders of .npy files, for datasets larger than memory."""

from __future__ import annotations

import json
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.claims import check_claim
from tql_lightning.data.sources.foreign_keys import rename
from tql_lightning.data.sources.schema import REQUIRED, SETTINGS, Keys, dataset_from, fields_of, with_held_out
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.system.files import write_whole_folder
from tql_lightning.trust.bounded import read_json, stored_bytes

METADATA = "metadata.json"
MAPPED = ("observations", "actions", "rewards", "next_observations")  # used in place: float32 in C order


def load_npy_folder(
    path: str,
    validation_fraction: float = 0.0,
    in_memory: bool = False,
    keys: dict[str, str] | None = None,
    max_episode_steps: int | None = None,
    env_id: str | None = None,
) -> TransitionDataset:
    """Memory-maps a folder of .npy files; checks them block by block.

    Files: observations.npy (N, n_s), actions.npy (N, n_a), rewards.npy and next_observations.npy (N, n_s), all
    float32; terminations.npy and truncations.npy (N,); optional masks.npy (N,), float32. An optional
    metadata.json holds env_id, action_low, action_high, actions_scaled and reference_scores. ``tql data convert``
    writes such folders, with scaled actions. Actions that are not yet scaled and clipped take 4 n_a bytes of memory per
    transition, episode ends one or two bytes, and missing masks four; the rest stays on disk.

    A folder ``NAME-val`` beside it becomes the held-out transitions.

    Args:
        path: Path of the folder, relative to the working directory.
        validation_fraction: Share of the episodes, from the end, to hold out.
        in_memory: Whether to read everything into memory; then any numeric dtype will do, and next_observations.npy
            may be missing.
        keys: Our name -> the file's name, as of `load_npz`.
        max_episode_steps: Time limit that splits dones.npy, as of `load_npz`.
        env_id: Gymnasium id of the environment to evaluate in; default: the folder's.

    Raises:
        DatasetError: A folder or file is missing, damaged, pickled, unknown or wrong.
    """

    def load(folder: Path) -> TransitionDataset:
        fields = read_npy_folder(folder)
        if in_memory:
            fields = {key: np.array(value) if isinstance(value, np.ndarray) else value for key, value in fields.items()}
        else:
            _require_mappable(folder, rename(folder, fields, keys))
        return dataset_from(folder, fields, keys=keys, max_episode_steps=max_episode_steps, env_id=env_id)

    return with_held_out(load, Path(path).expanduser(), validation_fraction)


def prepare_npy_folder(
    path: Path, scratch: Path, keys: Keys | None = None, max_episode_steps: int | None = None
) -> TransitionDataset:
    """Loads a folder of any numeric dtypes, with or without next observations, in bounded memory.

    Args:
        path: Path of the folder; a validation folder beside it is ignored.
        scratch: Folder for memory-mapped files of converted arrays, needed as long as the dataset is used.
        keys: Our name -> the file's name, as of `load_npz`.
        max_episode_steps: Time limit that splits dones.npy, as of `load_npz`.

    Raises:
        DatasetError: As `load_npy_folder`.
    """
    folder = Path(tempfile.mkdtemp(dir=scratch))
    numbers = count()  # an array may be converted twice

    def allocate(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        file = folder / f"{next(numbers)}_{name}.npy"
        return np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)

    return dataset_from(path, read_npy_folder(path), allocate, keys, max_episode_steps)


def save_npy_folder(path: Path | str, dataset: TransitionDataset) -> None:
    """Writes a dataset's transitions as a folder, which appears once it is complete; leaves out held-out transitions.

    Args:
        path: Path of the folder to create; it must not exist.
        dataset: Dataset to write; memory-mapped arrays are not copied into memory.

    Raises:
        FileExistsError: ``path`` exists.
    """
    arrays, settings = fields_of(dataset)
    with write_whole_folder(Path(path)) as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        (folder / METADATA).write_text(json.dumps(settings, indent=2) + "\n")


def require_npy_folder(folder: Path) -> None:
    """Raises a DatasetError if there is no such folder."""
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such folder; check the path, or make one with: tql data convert NAME {folder}"
        )


def read_npy_folder(folder: Path) -> dict[str, Any]:
    """A folder's arrays, mapped read-only, and its settings, by name.

    Raises:
        DatasetError: As `load_npy_folder`, apart from the contents of arrays.
    """
    require_npy_folder(folder)
    fields: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.name == METADATA or file.suffix == ".npy":
            _require_inside(folder, file)
        if file.name == METADATA:
            fields.update(_metadata(file))
        elif file.suffix == ".npy" and file.stem in SETTINGS:
            raise DatasetError(f"{file}: expected {file.stem} in {METADATA}, found an array; move it there")
        elif file.suffix == ".npy":
            fields[file.stem] = map_numbers(file)
    if not fields:
        raise DatasetError(
            f"{folder}: expected a folder of {', '.join(f'{name}.npy' for name in REQUIRED)}, found no .npy file; "
            "check the path"
        )
    return fields


def _require_inside(folder: Path, file: Path) -> None:
    """Rejects links out of the folder, and pipes and other special files."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(f"{file}: expected a file of this folder, found a link out of it; copy its target (cp -L)")
    if not file.is_file() and not file.is_dir():
        raise DatasetError(f"{file}: expected a file, found something else; remove it")
    check_claim(str(file), file.stat().st_size, stored_bytes(file))


def map_numbers(file: Path) -> NDArray[Any]:
    """An .npy file's array, mapped read-only.

    Raises:
        DatasetError: It is none, or holds fewer bytes than it says.
    """
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # numpy parses the header as Python, which may raise anything
        raise DatasetError(
            f"{file}: expected a whole .npy file of plain numbers, found one that cannot be mapped ({error}); "
            "make it again with numpy.save and a dtype of numbers"
        ) from error


def _metadata(file: Path) -> dict[str, Any]:
    try:
        settings = read_json(file)
    except (ValueError, OSError) as error:
        raise DatasetError(f"{file}: expected JSON, found something else ({error}); mend or remove it") from error
    if not isinstance(settings, dict) or not settings.keys() <= set(SETTINGS):
        raise DatasetError(
            f"{file}: expected an object of {', '.join(SETTINGS)}, found "
            f"{', '.join(settings) if isinstance(settings, dict) else type(settings).__name__}; remove what is unknown"
        )
    return settings


def _require_mappable(folder: Path, fields: dict[str, Any]) -> None:
    """Rejects arrays that cannot be used in place."""
    remedy = f"write it so with: tql data convert {folder} {folder}-float32, or give in_memory: true if it fits"
    if "next_observations" not in fields and set(REQUIRED[:3]) <= fields.keys():
        raise DatasetError(f"{folder}: expected next_observations.npy, found none; {remedy}")
    for name in MAPPED:
        array = fields.get(name)
        if isinstance(array, np.ndarray) and (array.dtype != np.float32 or not array.flags.c_contiguous):
            order = "" if array.flags.c_contiguous else " in Fortran order"
            raise DatasetError(
                f"{folder}: {name}.npy: expected float32 in C order, found {array.dtype}{order}; {remedy}"
            )
