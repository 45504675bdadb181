"""Datasets made to harm whoever loads them: refused with our own error, in little memory, and nothing is executed."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.data.bad_files import Write, npy_folder, npz, npz_bytes, settings
from tests.data.forged_files import (
    OBJECTS,
    encrypted,
    flip,
    hdf5,
    hdf5_bytes,
    header,
    hole,
    linked,
    member,
    minari,
    minari_bytes,
    npz_bomb,
    pickled,
    pipe,
    put,
    put_bomb,
    put_cycle,
    put_link,
    put_virtual,
    repeated,
    replaced,
    twice,
    without,
)
from tests.forging import NESTED, RUNS_A_COMMAND, WRAPS_WITH_A_COMMAND, Exploit, specification, watched
from tql_lightning.data.named import load_dataset
from tql_lightning.data.transitions import DatasetError

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
    "deep metadata": (minari(lambda _: NESTED), "not nested so deep"),
    "a list for metadata": (minari(lambda _: [1]), "expected a whole dataset of Minari"),
    "no space": (minari(without(observation_space='{"type": "os.system"}')), "expected a whole dataset of Minari"),
    "another format": (minari(without(data_format="pickle")), "expected arrays in HDF5, found format pickle"),
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
