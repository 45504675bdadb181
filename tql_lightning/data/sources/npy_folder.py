"""A folder of .npy files, mapped into memory: for datasets larger than it."""

from __future__ import annotations

import json
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.claims import check_claim, stored_bytes
from tql_lightning.data.sources.schema import REQUIRED, SETTINGS, dataset_from, fields_of, with_held_out
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.system.files import write_whole_folder

METADATA = "metadata.json"
MAPPED = ("observations", "actions", "rewards", "next_observations")  # as they lie: float32, row after row


def load_npy_folder(path: str, validation_fraction: float = 0.0, in_memory: bool = False) -> TransitionDataset:
    """Loads a folder of .npy files without reading them into memory; only looked at, block by block.

    Files: observations.npy (N, n_s), actions.npy (N, n_a), rewards.npy and next_observations.npy (N, n_s), all
    float32; terminations.npy and truncations.npy (N,); optional masks.npy (N,), float32. An optional
    metadata.json holds env_id, action_low, action_high, actions_scaled and reference_scores. ``tql data convert``
    writes all of it, with actions scaled. Actions that are not scaled and clipped yet take 4 n_a bytes of memory
    a transition, all else stays on disk (but a byte or two a transition for ends, and four for masks if not given).

    A folder ``NAME-val`` beside it becomes the held-out transitions.

    Args:
        path: the folder; relative to the working directory.
        validation_fraction: share of the episodes, the last ones, held out for validation.
        in_memory: read everything into memory, with any numeric dtype and with or without next_observations.npy.

    Raises:
        DatasetError: folder or file is missing, damaged, pickled, unknown or wrong.
    """

    def load(folder: Path) -> TransitionDataset:
        fields = read_npy_folder(folder)
        if in_memory:
            fields = {key: np.array(value) if isinstance(value, np.ndarray) else value for key, value in fields.items()}
        else:
            _require_mappable(folder, fields)
        return dataset_from(folder, fields)

    return with_held_out(load, Path(path).expanduser(), validation_fraction)


def prepare_npy_folder(path: Path, scratch: Path) -> TransitionDataset:
    """Loads a folder of any numeric dtypes, with or without next observations, in bounded memory.

    Args:
        path: the folder; what lies beside it is left out.
        scratch: folder for mapped files of what cannot be used as it lies; they are needed as long as the dataset is.

    Raises:
        DatasetError: as `load_npy_folder`.
    """
    folder = Path(tempfile.mkdtemp(dir=scratch))
    numbers = count()  # an array may be changed twice

    def allocate(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        file = folder / f"{next(numbers)}_{name}.npy"
        return np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)

    return dataset_from(path, read_npy_folder(path), allocate)


def save_npy_folder(path: Path | str, dataset: TransitionDataset) -> None:
    """Writes a dataset's transitions as a folder that is whole or not there; held-out ones are left out.

    Args:
        path: the folder to make; nothing may be there.
        dataset: its arrays may be mapped; they are never copied.

    Raises:
        FileExistsError: ``path`` exists.
    """
    arrays, settings = fields_of(dataset)
    with write_whole_folder(Path(path)) as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        (folder / METADATA).write_text(json.dumps(settings, indent=2) + "\n")


def read_npy_folder(folder: Path) -> dict[str, Any]:
    """A folder's arrays, mapped read-only, and its settings, by name.

    Raises:
        DatasetError: as `load_npy_folder`, but for what an array holds.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such folder; check the path, or make one with: tql data convert NAME {folder}"
        )
    fields: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.name == METADATA or file.suffix == ".npy":
            _require_inside(folder, file)
        if file.name == METADATA:
            fields.update(_metadata(file))
        elif file.suffix == ".npy" and file.stem in SETTINGS:
            raise DatasetError(f"{file}: expected {file.stem} in {METADATA}, found an array; move it there")
        elif file.suffix == ".npy":
            fields[file.stem] = _mapped(file)
    if not fields:
        raise DatasetError(
            f"{folder}: expected a folder of {', '.join(f'{name}.npy' for name in REQUIRED)}, found no .npy file; "
            "check the path"
        )
    return fields


def _require_inside(folder: Path, file: Path) -> None:
    """Refuses what is no file of the folder: a link that leads out of it, a pipe that nobody writes to."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(f"{file}: expected a file of this folder, found a link out of it; copy its target (cp -L)")
    if not file.is_file() and not file.is_dir():
        raise DatasetError(f"{file}: expected a file, found something else; remove it")
    check_claim(str(file), file.stat().st_size, stored_bytes(file))


def _mapped(file: Path) -> NDArray[Any]:
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # whatever Python's own parser makes of the beginning
        raise DatasetError(
            f"{file}: expected a whole .npy file of plain numbers, found one that cannot be mapped ({error}); "
            "make it again with numpy.save and a dtype of numbers"
        ) from error


def _metadata(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise DatasetError(f"{file}: expected JSON, found something else ({error}); mend or remove it") from error
    if not isinstance(settings, dict) or not settings.keys() <= set(SETTINGS):
        raise DatasetError(
            f"{file}: expected an object of {', '.join(SETTINGS)}, found "
            f"{', '.join(settings) if isinstance(settings, dict) else type(settings).__name__}; remove what is unknown"
        )
    return settings


def _require_mappable(folder: Path, fields: dict[str, Any]) -> None:
    """Refuses what could not be used as it lies on disk."""
    remedy = f"write it so with: tql data convert {folder} {folder}-float32, or give in_memory: true if it fits"
    if "next_observations" not in fields and set(REQUIRED) <= fields.keys():
        raise DatasetError(f"{folder}: expected next_observations.npy, found none; {remedy}")
    for name in MAPPED:
        array = fields.get(name)
        if isinstance(array, np.ndarray) and (array.dtype != np.float32 or not array.flags.c_contiguous):
            order = "" if array.flags.c_contiguous else " in Fortran order"
            raise DatasetError(
                f"{folder}: {name}.npy: expected float32 in C order, found {array.dtype}{order}; {remedy}"
            )
