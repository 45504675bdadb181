"""Hostile files given to the commands that read them: nothing runs, little is taken, and the answer is short."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.attack.refusing import Attack, assert_harmless
from tests.forging import NESTED, RUNS_A_COMMAND
from tests.report.runs import make_run
from tests.trust.test_out_of_range import STATES
from tests.trust.test_plain_output import CHECKPOINTS, HOSTILE
from tests.trust.test_torch_file import ARCHIVES, PICKLES, archive
from tests.trust.test_unchecked_settings import OLD_KEYS, STRINGS, TOO_LARGE

pytestmark = pytest.mark.slow

DATA = "--data.dataset=tests.toy.toy_dataset"


def checkpoint(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], object]:
    def write(folder: Path, whole: Path) -> None:
        raw = torch.load(whole, weights_only=True)
        change(raw)
        torch.save(raw, folder / "forged.ckpt")

    return write


def content(made: bytes) -> Callable[[Path, Path], object]:
    return lambda folder, _: (folder / "forged.ckpt").write_bytes(made)


def in_run(name: str, text: str) -> Callable[[Path, Path], object]:
    def write(folder: Path, _: Path) -> None:
        (make_run(folder / "run") / name).write_text(text)

    return write


def link_in_run(name: str) -> Callable[[Path, Path], object]:
    def write(folder: Path, _: Path) -> None:
        run = make_run(folder / "run")
        (run / "config.yaml").unlink()
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(folder.parent / "precious.txt")

    return write


def bomb(folder: Path, _: Path) -> None:
    """An archive whose rewards unpack to four gigabytes."""
    header = b"\x93NUMPY\1\0" + struct.pack("<H", 118)
    header += b"{'descr': '<f8', 'fortran_order': False, 'shape': (536870912,), }".ljust(117) + b"\n"
    with (
        zipfile.ZipFile(folder / "forged.npz", "w", zipfile.ZIP_DEFLATED) as target,
        target.open("rewards.npy", "w", force_zip64=True) as member,
    ):
        member.write(header)
        for _ in range(64):
            member.write(bytes(1 << 20))


def npz(**arrays: Any) -> Callable[[Path, Path], object]:
    return lambda folder, _: np.savez(folder / "forged.npz", **arrays)


def hdf5(fill: Callable[[h5py.File], object]) -> Callable[[Path, Path], object]:
    def write(folder: Path, _: Path) -> None:
        with h5py.File(folder / "forged.hdf5", "w") as file:
            fill(file)

    return write


EVALUATE, EXPORT = ("evaluate", "forged.ckpt"), ("export", "forged.ckpt")
CONFIG = ("--config", "tiny.yaml", DATA, "--ckpt_path=forged.ckpt")
VALIDATE, FIT = ("validate", *CONFIG), ("fit", *CONFIG, "--force=true")
REPORT, INTO_RUN = ("report", "run"), ("fit", "--config", "tiny.yaml", DATA)
NPZ, HDF5 = ("data", "inspect", "forged.npz"), ("data", "inspect", "forged.hdf5")
DEEP_YAML = "a: " + "[" * 2000 + "]" * 2000
ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12))

ATTACKS: dict[str, Attack] = {
    **{f"old key: {name}": (checkpoint(OLD_KEYS[name]), EVALUATE) for name in OLD_KEYS},
    "old key to export": (checkpoint(OLD_KEYS["module_arguments"]), EXPORT),
    "old key to validate": (checkpoint(OLD_KEYS["hparams"]), VALIDATE),
    "old key to fit": (checkpoint(OLD_KEYS["hparams"]), FIT),
    **{f"string: {name}": (checkpoint(STRINGS[name]), VALIDATE) for name in STRINGS},
    **{f"too large: {name}": (checkpoint(TOO_LARGE[name]), EVALUATE) for name in TOO_LARGE},
    **{
        f"pickle: {name}": (content(archive(b"\x80\2" + PICKLES[name][0], **{"0": bytes(16)})), EVALUATE)
        for name in (
            "four gigabytes by their number",
            "tuples whose hash never ends",
            "a set of tuples whose hash never ends",
            "tuples in tuples",
            "keys of one hash",
            "a tensor larger than its storage",
            "one number repeated for ever",
            "a name with control sequences",
        )
    },
    "a pickle to fit": (content(archive(b"\x80\2" + PICKLES["tuples whose hash never ends"][0])), FIT),
    **{
        f"archive: {name}": (content(ARCHIVES[name][1](ARCHIVES[name][0])), EVALUATE)
        for name in ("another archive before it", "another archive after it", "another archive in its comment")
    },
    **{f"state: {name}": (checkpoint(STATES[name]), FIT) for name in ("loops", "an optimizer of text", "version")},
    **{f"terminal: {name}": (checkpoint(CHECKPOINTS[name]), EVALUATE) for name in CHECKPOINTS},
    "an infinite number of updates": (checkpoint(lambda raw: raw.update(global_step=float("inf"))), FIT),
    "a command as environment": (
        checkpoint(lambda raw: raw["OfflineDataModule"].update(env_id=RUNS_A_COMMAND)),
        EVALUATE,
    ),
    "a link in the place of the lock": (link_in_run("run.lock"), INTO_RUN),
    "a link in the place of environment.json": (link_in_run("environment.json"), INTO_RUN),
    "a link in the place of metrics.csv": (link_in_run("metrics.csv"), INTO_RUN),
    "a link that a report would show": (link_in_run("environment.json"), REPORT),
    "metrics of 400 digits": (in_run("metrics.csv", f"step,eval/return\n{'9' * 400},1\n"), REPORT),
    "metrics of other columns": (in_run("metrics.csv", "a,b\n1,2\n"), REPORT),
    "a configuration of aliases": (in_run("config.yaml", ALIASES), REPORT),
    "a deep configuration": (in_run("config.yaml", DEEP_YAML), REPORT),
    "a deep evaluation": (in_run("evaluations/update_000000000.json", NESTED), REPORT),
    "a terminal's evaluation": (in_run("evaluations/update_000000000.json", HOSTILE), REPORT),
    "arrays that unpack to gigabytes": (bomb, NPZ),
    "pickled arrays": (npz(observations=np.array([{}], dtype=object)), NPZ),
    "a dataset of no arrays": (npz(), NPZ),
    "HDF5 of another file": (hdf5(lambda file: file.update(rewards=h5py.ExternalLink("/etc/passwd", "/x"))), HDF5),
    "HDF5 of a terabyte": (hdf5(lambda file: file.create_dataset("rewards", (1 << 37,), "f8", chunks=True)), HDF5),
    "HDF5 within itself": (hdf5(lambda file: file.update(observations=h5py.SoftLink("/observations"))), HDF5),
}


def test_there_are_more_than_forty() -> None:
    assert len(ATTACKS) >= 40


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_file_runs_nothing_takes_little_and_is_answered_shortly(name: str, whole: Path, folder: Path) -> None:
    write, command = ATTACKS[name]
    write(folder, whole)
    assert_harmless(folder, command, code=2)
