"""Datasets made to harm whoever loads them: refused with our own error, in little memory, and nothing is executed."""

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
import pytest

from tests.data.formats import record, write_d4rl, write_minari
from tests.data.test_bad_inputs import Write, npy_folder, npz, npz_bytes, settings
from tests.data.test_d4rl import columns
from tests.forging import BOMB_BYTES, NESTED, RUNS_A_COMMAND, WRAPS_WITH_A_COMMAND, Exploit, specification, watched
from tql_lightning.data.named import load_dataset
from tql_lightning.data.transitions import DatasetError

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


BOX = {"type": "Box", "dtype": "float32", "shape": [10**12], "low": -1.0, "high": 1.0}
NPZ: dict[str, tuple[Write, str]] = {
    "pickled objects": (npz(rewards=OBJECTS), "expected plain arrays"),
    "pickled environment": (npz(env_id=np.array(Exploit(), dtype=object)), "expected plain arrays"),
    "a pickle": (pickled, "expected plain arrays"),
    "a name that leads out": (member("../../outside", header() + bytes(40)), "unknown: ../../outside"),
    "an absolute name": (member("/outside", header() + bytes(40)), "unknown: /outside"),
    "a huge shape": (member("rewards", header(shape=(10**12,))), "rewards: expected 8,000,000,000,000 bytes"),
    "more than all memory": (member("rewards", header(shape=(2**62, 9))), "for the shape (4611686018427387904, 9)"),
    "a shape below nothing": (member("rewards", header(shape=(-5,)) + bytes(40)), "rewards: expected -40 bytes"),
    "fewer numbers than told": (member("rewards", header() + bytes(32)), "expected 40 bytes for the shape (5,)"),
    "more numbers than told": (member("rewards", header() + bytes(48)), "expected 40 bytes for the shape (5,)"),
    "a bomb": (npz_bomb, "bad.npz: expected at most"),
    "another compression": (member("rewards", header() + bytes(40), zipfile.ZIP_BZIP2), "as numpy writes it"),
    "two of a name": (twice, "rewards: expected one array as numpy writes it"),
    "encrypted": (npz_bytes(encrypted), "expected a whole npz file"),
    "a program": (member("rewards", b"import os"), "expected plain arrays"),
    "a header that is a program": (member("rewards", header(shape="__import__('os')")), "expected plain arrays"),
    "a header without end": (member("rewards", header(shape=())[:-8] + b"\n"), "expected plain arrays"),
    "endless empty strings": (member("env_id", header(descr="<U0", shape=(10**12,))), "env_id: expected a string"),
    "a module as environment": (npz(env_id="antigravity:Env-v0"), "TQL_TRUST=antigravity"),
    "a command as environment": (npz(env_id=RUNS_A_COMMAND), "expected module:Class of a gymnasium.Env"),
    "a command around an environment": (npz(env_id=WRAPS_WITH_A_COMMAND), "of a gymnasium.Wrapper"),
    "a module with effects": (npz(env_id=specification("this:s")), "TQL_TRUST=this"),
    "no specification": (npz(env_id="{" + NESTED), "JSON of an environment's specification"),
}
FOLDERS: dict[str, tuple[Write, str]] = {
    "a link out of the folder": (linked("rewards.npy", "FOLDER/outside.npy"), "found a link out of it"),
    "a link upwards": (linked("rewards.npy", "../outside.npy"), "found a link out of it"),
    "a link to nothing": (linked("rewards.npy", "nothing.npy"), "expected a file"),
    "settings that are a link": (linked("metadata.json", "/etc/passwd"), "found a link out of it"),
    "a device": (linked("rewards.npy", "/dev/zero"), "found a link out of it"),
    "a pipe": (pipe, "expected a file"),
    "a hole of 128 GiB": (hole, "rewards.npy: expected at most"),
    "pickled objects": (npy_folder(rewards=OBJECTS), "rewards.npy: expected a whole .npy file"),
    "a pickle": (npy_folder(rewards=pickle.dumps(Exploit())), "rewards.npy: expected a whole .npy file"),
    "a huge shape": (npy_folder(rewards=header(shape=(10**12,))), "rewards.npy: expected a whole .npy file"),
    "a shape below nothing": (npy_folder(rewards=header(shape=(-5,)) + bytes(40)), "expected a whole .npy file"),
    "a header without end": (npy_folder(rewards=header()[:-8] + b"\n"), "expected a whole .npy file"),
    "deep settings": (npy_folder(metadata=NESTED.encode()), "metadata.json: expected JSON"),
    "a module as environment": (settings(env_id="antigravity:Env-v0"), "TQL_TRUST=antigravity"),
    "a command as environment": (settings(env_id=RUNS_A_COMMAND), "expected module:Class of a gymnasium.Env"),
}
HDF5: dict[str, tuple[Write, str]] = {
    "a link by name": (hdf5(put_link(h5py.SoftLink("/actions"))), "rewards: expected an array in the file itself"),
    "a link to itself": (hdf5(put_link(h5py.SoftLink("/rewards"))), "found a link to another place"),
    "a link into another file": (
        hdf5(put_link(h5py.ExternalLink("other.hdf5", "/rewards"))),
        "found a link to another",
    ),
    "another file's bytes": (hdf5(put(7, external=[("/etc/passwd", 0, 28)])), "found one of other files"),
    "another file's array": (hdf5(put_virtual), "found one of other files"),
    "a shape without numbers": (hdf5(put(2**40)), "found a shape (1099511627776,) without numbers"),
    "a filled shape": (hdf5(put(2**40, chunks=(2**20,), fillvalue=1.0)), "without numbers"),
    "a bomb": (hdf5(put_bomb), "bad.hdf5: expected at most"),
    "strings": (hdf5(put(7, dtype=h5py.string_dtype())), "rewards: expected numbers, found dtype object"),
    "rows of unequal lengths": (hdf5(put(7, dtype=h5py.vlen_dtype("f4"))), "rewards: expected numbers"),
    "references": (hdf5(put(7, dtype=h5py.ref_dtype)), "rewards: expected numbers"),
    "records": (hdf5(put(7, dtype=np.dtype([("x", "f4")]))), "rewards: expected numbers"),
    "no shape": (hdf5(lambda file: file.__setitem__("rewards", h5py.Empty("f4"))), "rewards: expected numbers"),
    "a group of itself": (hdf5(put_cycle), "found no rewards"),
    "cut short": (hdf5_bytes(lambda whole: whole[:-100]), "expected a whole HDF5 file"),
    "flipped bytes": (hdf5_bytes(flip), "expected a whole HDF5 file"),
}
MINARI: dict[str, tuple[Write, str]] = {
    "a command that the package would run": (
        minari(without("observation_space", env_spec=RUNS_A_COMMAND)),
        "expected a whole dataset of Minari",
    ),
    "a command as environment": (minari(without(env_spec=WRAPS_WITH_A_COMMAND)), "of a gymnasium.Wrapper"),
    "a module as environment": (
        minari(without(env_spec=specification("x:y", "antigravity:Env-v0"))),
        "TQL_TRUST=antigravity",
    ),
    "a huge space": (minari(without(observation_space=json.dumps(BOX))), "expected at most 16,777,216 columns"),
    "a huge part of a space": (
        minari(without(action_space=json.dumps({"type": "Dict", "subspaces": {"a": BOX}}))),
        "expected at most 16,777,216 columns",
    ),
    "deep metadata": (minari(lambda _: NESTED), "RecursionError"),
    "a list for metadata": (minari(lambda _: [1]), "expected a whole dataset of Minari"),
    "no space": (minari(without(observation_space='{"type": "os.system"}')), "expected a whole dataset of Minari"),
    "another format": (minari(without(data_format="pickle")), "expected a whole dataset of Minari"),
    "a link by name": (
        minari(data=replaced(lambda group: group.__setitem__("rewards", h5py.SoftLink("/episode_1/rewards")))),
        "rewards: expected an array in the file itself",
    ),
    "a link into another file": (
        minari(data=replaced(lambda group: group.__setitem__("rewards", h5py.ExternalLink("/etc/passwd", "/x")))),
        "rewards: expected an array in the file itself",
    ),
    "another file's bytes": (
        minari(
            data=replaced(lambda group: group.create_dataset("rewards", 3, "f4", external=[("/etc/passwd", 0, 12)]))
        ),
        "found one of other files",
    ),
    "a shape without numbers": (
        minari(data=replaced(lambda group: group.create_dataset("rewards", 2**40, "f4"))),
        "without numbers",
    ),
    "one row two thousand times": (minari(data=replaced(repeated)), "rewards: expected at most"),
    "cut short": (minari_bytes(lambda whole: whole[: len(whole) // 2]), "expected a whole dataset of Minari"),
    "flipped bytes": (minari_bytes(flip), "expected a whole dataset of Minari"),
    "a name that leads out": (lambda _: "minari:../../etc/x-v0", "Malformed dataset ID"),
}
KINDS = {"npz": NPZ, "folder": FOLDERS, "hdf5": HDF5, "minari": MINARI}
FORGED = {f"{kind}: {name}": case for kind, cases in KINDS.items() for name, case in cases.items()}


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def test_there_are_at_least_twelve_of_each_kind() -> None:
    assert min(map(len, KINDS.values())) >= 12


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_dataset_is_refused_and_runs_nothing(case: str, tmp_path: Path) -> None:
    write, message = FORGED[case]
    name = write(tmp_path)
    with watched(tmp_path), pytest.raises(DatasetError) as caught:
        load_dataset(name)
    assert message in str(caught.value), caught.value
