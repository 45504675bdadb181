"""Makes datasets that are to harm whoever loads them."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np

from tests.data.bad_files import Write, npy_folder, npz
from tests.data.formats import record, write_d4rl, write_minari
from tests.data.test_d4rl import columns
from tests.forging import BOMB_BYTES, Exploit

BOMB = np.zeros(BOMB_BYTES, np.uint8)
OBJECTS = np.array([Exploit()] * 5, dtype=object)


def header(**changes: Any) -> bytes:
    """The beginning of an array, which numpy would write for other contents."""
    text = repr({"descr": "<f8", "fortran_order": False, "shape": (5,)} | changes).encode()
    return b"\x93NUMPY\x01\0" + (len(text) + 1).to_bytes(2, "little") + text + b"\n"


def member(name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> Write:
    """Our own file with one more member, or with one in place of its own."""

    def write(folder: Path) -> str:
        whole = Path(npz(**{name: None})(folder))
        with zipfile.ZipFile(whole, "a") as archive:
            archive.writestr(f"{name}.npy", content, compression)
        return str(whole)

    return write


def pickled(folder: Path) -> str:
    (folder / "bad.npz").write_bytes(pickle.dumps(Exploit()))
    return str(folder / "bad.npz")


def npz_bomb(folder: Path) -> str:
    path = Path(npz(rewards=None)(folder))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("rewards.npy", header(descr="|u1", shape=(BOMB_BYTES,)) + BOMB.tobytes())
    return str(path)


def twice(folder: Path) -> str:
    path = Path(npz()(folder))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("rewards.npy", header() + bytes(40))
    return str(path)


def encrypted(whole: bytes) -> bytes:
    """Says that every member is."""
    at = whole.index(b"PK\x01\x02") + 8
    return whole[:at] + b"\1" + whole[at + 1 :]


def linked(name: str, target: str) -> Write:
    """A folder in which a file is a link."""

    def write(folder: Path) -> str:
        path = Path(npy_folder(**{name.partition(".")[0]: None})(folder))
        (folder / "outside.npy").write_bytes(header(descr="<f4") + bytes(20))
        (path / name).symlink_to(target.replace("FOLDER", str(folder)))
        return str(path)

    return write


def pipe(folder: Path) -> str:
    path = Path(npy_folder(rewards=None)(folder))
    os.mkfifo(path / "rewards.npy")
    return str(path)


def hole(folder: Path) -> str:
    path = Path(npy_folder()(folder)) / "rewards.npy"
    path.write_bytes(header(descr="<f4", shape=(1 << 35,)))
    os.truncate(path, len(path.read_bytes()) + (1 << 37))
    return str(path.parent)


def hdf5(change: Callable[[h5py.File], None], **changed: Any) -> Write:
    """A D4RL file without rewards, which a function puts there."""

    def write(folder: Path) -> str:
        path = write_d4rl(folder / "bad.hdf5", **columns(rewards=None, **changed))
        write_d4rl(folder / "other.hdf5", **columns())
        with h5py.File(path, "a") as file:
            change(file)
        return str(path)

    return write


def hdf5_bytes(change: Callable[[bytes], bytes]) -> Write:
    def write(folder: Path) -> str:
        path = write_d4rl(folder / "bad.hdf5", **columns())
        path.write_bytes(change(path.read_bytes()))
        return str(path)

    return write


def put(*shape: int, dtype: Any = "f4", **storage: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.create_dataset("rewards", shape, dtype, **storage) and None


def put_link(link: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.__setitem__("rewards", link)


def put_virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((7,), "f4")
    layout[...] = h5py.VirtualSource("other.hdf5", "rewards", (7,))
    file.create_virtual_dataset("rewards", layout)


def put_bomb(file: h5py.File) -> None:
    file.create_dataset("rewards", data=BOMB, compression="gzip", compression_opts=9, chunks=(1 << 24,))


def put_cycle(file: h5py.File) -> None:
    file.create_group("rewards")["rewards"] = file["/"]


def flip(whole: bytes) -> bytes:
    at = whole.index(b"TREE")
    return whole[:at] + b"EERT" + whole[at + 4 :]


def minari(
    metadata: Callable[[dict[str, Any]], Any] | None = None, data: Callable[[h5py.File], None] | None = None
) -> Write:
    """A Minari dataset whose metadata or file are changed."""

    def write(folder: Path) -> str:
        env = gymnasium.make("Pendulum-v1", max_episode_steps=3)
        write_minari("toy/bad-v0", env, record(env, 2, 3))
        env.close()
        files = folder / "cache" / "toy" / "bad-v0" / "data"
        if metadata is not None:
            told = metadata(json.loads((files / "metadata.json").read_text()))
            (files / "metadata.json").write_text(told if isinstance(told, str) else json.dumps(told))
        if data is not None:
            with h5py.File(files / "main_data.hdf5", "a") as file:
                data(file)
        return "minari:toy/bad-v0"

    return write


def minari_bytes(change: Callable[[bytes], bytes]) -> Write:
    def write(folder: Path) -> str:
        name = minari()(folder)
        path = folder / "cache" / "toy" / "bad-v0" / "data" / "main_data.hdf5"
        path.write_bytes(change(path.read_bytes()))
        return name

    return write


def without(*names: str, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda told: {name: value for name, value in (told | changes).items() if name not in names}


def replaced(make: Callable[[h5py.Group], object]) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["episode_0/rewards"]
        make(file["episode_0"])

    return change


def repeated(group: h5py.Group) -> None:
    """Rows of unequal lengths, all of which are the same mebibyte."""
    rows = group.create_dataset("rewards", (2_000,), h5py.vlen_dtype("u1"))
    rows[0] = np.zeros(1 << 20, np.uint8)
    raw = group.file.filename
    offset = rows.id.get_offset()
    group.file.close()
    content = bytearray(Path(raw).read_bytes())
    for row in range(1, 2_000):
        content[offset + 16 * row : offset + 16 * row + 16] = content[offset : offset + 16]
    Path(raw).write_bytes(content)
