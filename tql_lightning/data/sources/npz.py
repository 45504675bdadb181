"""The project's own dataset file: one npz of arrays, no pickle."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tql_lightning.data.claims import check_claim
from tql_lightning.data.sources.schema import dataset_from, with_held_out
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.system.files import write_whole
from tql_lightning.trust.bounded import stored_bytes

ENVIRONMENT = re.compile(r"[\w-]+-v\d+")  # name of a file that `tql collect` makes


def load_npz(
    path: str,
    validation_fraction: float = 0.0,
    keys: dict[str, str] | None = None,
    max_episode_steps: int | None = None,
    env_id: str | None = None,
) -> TransitionDataset:
    """Loads an npz file of transitions in the order of recording.

    Its arrays: observations (N, n_s), actions (N, n_a) in the environment's units, rewards, terminations
    and truncations (N,); optional next_observations (N, n_s), masks (N,), env_id (a string), action_low and
    action_high (n_a,), which are -1 and 1 if not given, actions_scaled (whether the actions were scaled from these
    bounds to [-1, 1] already) and reference_scores (2,). `TransitionDataset.from_arrays` tells what each means.

    A file ``NAME-val.npz`` beside it becomes the held-out transitions.

    Args:
        path: the file; relative to the working directory.
        validation_fraction: share of the episodes, the last ones, held out for validation.
        keys: Our name -> the file's name, of arrays under other names: {observations: obs, actions: acts}. Then
            arrays of unknown names are left out.
        max_episode_steps: For a file with ``dones`` in place of terminations and truncations: steps after which the
            environment cuts an episode, or 0 if every done is a termination. Default: the limit of ``env_id``.
        env_id: Gymnasium id of the environment to evaluate in; default: the file's.

    Raises:
        DatasetError: the file is missing, damaged or pickled, or an array is missing, unknown or wrong.
    """

    def load(file: Path) -> TransitionDataset:
        return dataset_from(file, read_npz(file), keys=keys, max_episode_steps=max_episode_steps, env_id=env_id)

    return with_held_out(load, Path(path).expanduser(), validation_fraction)


def save_npz(path: Path | str, **arrays: ArrayLike) -> None:
    """Writes arrays to an npz file, which appears once it is complete.

    Args:
        path: the file to make or replace.
        **arrays: by the names that `load_npz` reads.

    Raises:
        DatasetError: an array holds Python objects, which only pickle could store.
    """
    plain = {key: np.asarray(value) for key, value in arrays.items()}
    for key, array in plain.items():
        if array.dtype.hasobject:
            raise DatasetError(f"{path}: {key}: expected numbers or strings, found dtype {array.dtype}; convert it")
    with write_whole(Path(path)) as file:
        np.savez(file, **plain)  # type: ignore[arg-type]  # no array is called allow_pickle


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Reads every array of an npz file; raises as `open_npz` does."""
    with open_npz(path) as file:
        return {key: file[key] for key in file.files}


def require_npz(path: Path) -> None:
    """Raises a DatasetError if there is no such file."""
    if not path.is_file():
        environment = path.stem if ENVIRONMENT.fullmatch(path.stem) else "ENVIRONMENT"
        raise DatasetError(
            f"{path}: no such file; check the path, or make a dataset with: tql collect {environment} --output {path}"
        )


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens an npz file without pickle; arrays are read on demand within the block.

    Raises:
        DatasetError: the file is missing, is no npz, is damaged, holds pickled objects or outgrows the memory.
    """
    require_npz(path)
    try:
        # numpy would leave a file open that it cannot read; so give it an open one.
        with path.open("rb") as stream:
            if stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise DatasetError(
                    f"{path}: expected an npz archive of arrays, found a single array; save it with numpy.savez"
                )
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                _check_members(path, file.zip)
                yield file
    except DatasetError:
        raise
    except MemoryError as error:
        raise DatasetError(f"{path}: expected arrays that fit into memory ({error}); split the file") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, RuntimeError, OverflowError) as error:
        raise DatasetError(
            f"{path}: expected a whole npz file, found a damaged one ({error}); remove it and fetch or make it again"
        ) from error
    except (ValueError, TypeError) as error:
        raise DatasetError(
            f"{path}: expected plain arrays, found something that numpy opens only with pickle or not at all "
            f"({error}); save it again with numpy.savez and dtypes of numbers"
        ) from error


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Rejects an archive whose members claim other sizes than they have, before any is unpacked.

    Raises:
        DatasetError: they do, or numpy wrote no such member.
        ValueError: numpy cannot read the beginning of an array.
    """
    members = archive.infolist()
    check_claim(str(path), sum(member.file_size for member in members), stored_bytes(path))
    names = [member.filename.removesuffix(".npy") for member in members]
    for member, name in zip(members, names, strict=True):
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or names.count(name) > 1:
            raise DatasetError(
                f"{path}: {name:.80}: expected one array as numpy writes it; save it again with numpy.savez"
            )
        with archive.open(member) as stream:
            shape, dtype = _header(name, stream)
            claimed, held = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
            if min(shape, default=0) < 0 or (not dtype.hasobject and claimed != held):
                raise DatasetError(
                    f"{path}: {name:.80}: expected {claimed:,} bytes for the shape {shape} that it claims, found "
                    f"{held:,}; it is damaged or forged: fetch or make it again"
                )


def _header(name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type at the beginning of an array.

    Raises:
        ValueError: numpy writes no such beginning.
        zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError: the archive is damaged.
    """
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"format version {version}")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):
        raise
    except Exception as error:  # numpy parses the header as Python, which may raise anything
        raise ValueError(f"{name:.80}: {error or type(error).__name__}") from error
    return shape, dtype
