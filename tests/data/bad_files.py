"""Makes datasets that are wrong in one way each."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.data.formats import write_d4rl
from tests.data.test_d4rl import columns
from tests.data.test_transitions import arrays
from tql_lightning.data.sources.npy_folder import save_npy_folder
from tql_lightning.data.sources.npz import save_npz
from tql_lightning.data.transitions import TransitionDataset

Write = Callable[[Path], str]  # makes a bad dataset in a folder and returns its name


def npz(**changes: Any) -> Write:
    """Our own file with some arrays changed, or left out where they are None."""

    def write(folder: Path) -> str:
        values = arrays(**changes)
        del values["name"]
        np.savez(folder / "bad.npz", **values)
        return str(folder / "bad.npz")

    return write


def npz_bytes(change: Callable[[bytes], bytes]) -> Write:
    """Our own file with other bytes."""

    def write(folder: Path) -> str:
        path = Path(npz()(folder))
        path.write_bytes(change(path.read_bytes()))
        return str(path)

    return write


def npy_folder(**files: Any) -> Write:
    """A folder with some files changed (arrays or bytes), or removed where they are None."""

    def write(folder: Path) -> str:
        path = folder / "bad"
        save_npy_folder(path, TransitionDataset.from_arrays(**arrays()))
        for name, content in files.items():
            file = path / ("metadata.json" if name == "metadata" else f"{name}.npy")
            if content is None:
                file.unlink()
            elif isinstance(content, bytes):
                file.write_bytes(content)
            else:
                np.save(file, content)
        return str(path)

    return write


def d4rl(**changes: Any) -> Write:
    """A D4RL file with some arrays changed, or left out where they are None."""
    return lambda folder: str(write_d4rl(folder / "bad.hdf5", **columns(**changes)))


def named(name: str) -> Write:
    """A name in the folder, or elsewhere, at which nothing is."""
    return lambda folder: name.replace("FOLDER", str(folder))


def single_array(folder: Path) -> str:
    with (folder / "bad.npz").open("wb") as file:
        np.save(file, np.ones(3))
    return str(folder / "bad.npz")


def larger_than_its_file(folder: Path) -> str:
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive, archive.open("observations.npy", "w") as member:
        header = {"descr": "<f8", "fortran_order": False, "shape": (2**50, 2)}
        np.lib.format.write_array_header_1_0(member, header)
    return str(folder / "bad.npz")


def cut_array(folder: Path) -> str:
    path = Path(npy_folder()(folder)) / "observations.npy"
    path.write_bytes(path.read_bytes()[:-8])
    return str(path.parent)


def cut_hdf5(folder: Path) -> str:
    path = Path(d4rl()(folder))
    path.write_bytes(path.read_bytes()[:-100])
    return str(path)


def grouped_hdf5(folder: Path) -> str:
    path = Path(d4rl(rewards=None)(folder))
    with h5py.File(path, "a") as file:
        file.create_group("rewards")
    return str(path)


def other_bytes(suffix: str) -> Write:
    def write(folder: Path) -> str:
        (folder / f"bad{suffix}").write_text("neither zip nor HDF5")
        return str(folder / f"bad{suffix}")

    return write


def empty_folder(folder: Path) -> str:
    (folder / "bad").mkdir()
    return str(folder / "bad")


def folder_for_metadata(folder: Path) -> str:
    path = Path(npy_folder(metadata=None)(folder))
    (path / "metadata.json").mkdir()
    return str(path)


def wrong_held_out(folder: Path) -> str:
    path = Path(npz()(folder))
    wide = arrays(observations=np.ones((5, 3)), next_observations=np.ones((5, 3)))
    del wide["name"]
    save_npz(folder / "bad-val.npz", **wide)
    return str(path)


def settings(**values: Any) -> Write:
    return npy_folder(metadata=json.dumps(values).encode())
