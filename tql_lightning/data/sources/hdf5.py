"""Checks of HDF5 files: arrays must be stored in the file itself, at sizes that it can hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.checks import DatasetError
from tql_lightning.data.claims import check_claim
from tql_lightning.trust.bounded import ALWAYS_ALLOWED_BYTES, MAX_EXPANSION, require_regular, stored_bytes


def check_links(path: Path, group: Any, names: list[str]) -> None:
    """Rejects soft and external links, which may point to any file.

    Args:
        path: Path of the file, for errors.
        group: Group of h5py.
        names: Names of the members to check.

    Raises:
        DatasetError: One of them is such a link.
    """
    import h5py

    for name in names:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise DatasetError(
                f"{path}: {name}: expected an array in the file itself, found a link to another place; copy it there"
            )


def claimed_bytes(path: Path, name: str, dataset: Any) -> int:
    """Bytes of memory that reading an array takes.

    Raises:
        DatasetError: its numbers lie in other files, or nowhere.
    """
    if dataset.external or dataset.is_virtual:
        raise DatasetError(
            f"{path}: {name}: expected an array in the file itself, found one of other files; copy it there"
        )
    each: int = dataset.dtype.itemsize
    size = math.prod(dataset.shape or (0,)) * each
    if size and not dataset.id.get_storage_size():
        raise DatasetError(
            f"{path}: {name}: expected an array, found a shape {dataset.shape} without numbers; fetch it again"
        )
    return size + math.prod(dataset.chunks or (0,)) * each


def read_numbers(path: Path, file: Any, names: list[str]) -> dict[str, NDArray[Any]]:
    """Reads arrays of numbers by name, after checking that each is stored in the file.

    Args:
        path: the file, for errors.
        file: Open file of h5py.
        names: Names of its arrays.

    Raises:
        DatasetError: one is no array of numbers, lies elsewhere, or claims more than the file can hold.
    """
    check_links(path, file, names)
    for name in names:
        if file[name].dtype.kind not in "fiub" or file[name].shape is None:
            raise DatasetError(
                f"{path.stem}: {name}: expected numbers, found dtype {file[name].dtype}; convert it to float32"
            )
    check_claim(str(path), sum(claimed_bytes(path, name, file[name]) for name in names), stored_bytes(path))
    return {name: np.asarray(file[name][()]) for name in names}


def check_whole_file(path: Path) -> None:
    """Checks every object of a file that another package will read.

    Raises:
        DatasetError: something lies elsewhere, or claims more than the file can hold.
        OSError, RuntimeError, KeyError, ValueError: the file is damaged, or none.
    """
    import h5py

    require_regular(path)
    stored, claims = stored_bytes(path), [0]

    def look(name: str, found: Any) -> None:
        if isinstance(found, h5py.Group):
            check_links(path, found, list(found))
        elif isinstance(found, h5py.Dataset):
            claims[0] += claimed_bytes(path, name, found)
            check_claim(str(path), claims[0], stored)
            if found.dtype.kind == "O" and found.ndim:
                _check_lengths(path, name, found, stored, claims)

    with h5py.File(path, "r") as file:
        check_links(path, file, list(file))
        file.visititems(look)


def _check_lengths(path: Path, name: str, dataset: Any, stored: int, claims: list[int]) -> None:
    """Adds up strings and ragged rows, which may all point to the same bytes of the file."""
    rows = max(1, (ALWAYS_ALLOWED_BYTES // max(1, stored) + MAX_EXPANSION) // max(1, math.prod(dataset.shape[1:])))
    for start in range(0, len(dataset), rows):
        for value in np.ravel(dataset[start : start + rows]):
            claims[0] += len(value) if isinstance(value, bytes | str) else getattr(value, "nbytes", 0)
        check_claim(f"{path}: {name}", claims[0], stored)
