"""Readers, the files that each is tried with, and the errors that it may raise."""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from hypothesis import strategies as st

from tests.command_line import ParsedOnly
from tests.data.test_transitions import arrays
from tests.export.test_policy import trained
from tests.fuzz import run_files as run
from tests.fuzz.files import (
    CONFIG,
    built_checkpoint,
    built_config,
    built_hdf5,
    built_npz,
    built_policy,
    changed,
    hdf5_bytes,
    npz_bytes,
)
from tql_lightning.algorithms.loading import check_contents
from tql_lightning.benchmark.suite import SuiteError
from tql_lightning.benchmark.summary import summary_of
from tql_lightning.cli.configs import resolve_configs
from tql_lightning.cli.errors import short_message
from tql_lightning.data.named import load_dataset
from tql_lightning.data.sources.npy_folder import save_npy_folder
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.export.policy import Policy
from tql_lightning.export.policy_folder import METADATA_FILE, PolicyError
from tql_lightning.export.writer import export_checkpoint
from tql_lightning.report.page import write_report
from tql_lightning.report.runs import ReportError
from tql_lightning.report.table_formats import TableFormat, render_table
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import read_checkpoint


@dataclass(frozen=True)
class Reader:
    """How to read a file, named so, what it must read, and what to try it with."""

    name: str
    read: Callable[[Path], object]
    whole: Callable[[], bytes]
    files: st.SearchStrategy[bytes]
    named: tuple[type[Exception], ...]


@cache
def _command_line() -> Any:
    sys.argv = ["tql", *resolve_configs(["fit", "--config", "quickstart"], ["fit"])]
    return ParsedOnly().parser


def _config(path: Path) -> None:
    """As `tql fit` does; whatever it tells the user in a few lines is an error with a name."""
    try:
        _command_line().parse_args(resolve_configs(["fit", "--config", str(path)], ["fit"]))
    except Exception as error:
        if short_message(error) is None:
            raise
        raise DatasetError(str(error)) from error


def _dataset(path: Path) -> object:
    return load_dataset(str(path))


def _beside(name: str) -> Callable[[Path], object]:
    """Reads a folder of mapped files in which one has been replaced."""

    def read(path: Path) -> object:
        folder = path.parent / "folder"
        if not folder.exists():
            save_npy_folder(folder, TransitionDataset.from_arrays(**arrays(), env_id="Pendulum-v1"))
        kept = (folder / name).read_bytes()
        try:
            (folder / name).write_bytes(path.read_bytes())
            return load_dataset(str(folder))
        finally:
            (folder / name).write_bytes(kept)

    return read


def _in_run(name: str) -> Callable[[Path], object]:
    """Reports on a benchmark's folder, and on the run in it, in which one file has been replaced."""

    def read(path: Path) -> None:
        folder = path.parent / "benchmark"
        if not folder.exists():
            (folder / "run" / "evaluations").mkdir(parents=True)
            for file, whole in run_files().items():
                (folder / file).write_bytes(whole)
        kept = (folder / name).read_bytes()
        try:
            (folder / name).write_bytes(path.read_bytes())
            summary = summary_of([folder])
            for form in get_args(TableFormat):
                render_table(summary, form)
            write_report([folder / "run"], path.parent / "report.html")
        finally:
            (folder / name).write_bytes(kept)

    return read


def run_files() -> dict[str, bytes]:
    """Whole files of a benchmark's folder, by name."""
    contents: dict[str, Any] = {"benchmark.json": run.PLAN, "search.json": run.SEARCH}
    contents |= {"run/baselines.json": run.BASELINES, "run/environment.json": run.STARTS}
    contents |= {"run/evaluations/update_000000200.json": run.EVALUATION, "run/config.yaml": run.CONFIG}
    return {name: json.dumps(value).encode() for name, value in contents.items()} | {
        "run/metrics.csv": run.METRICS.encode()
    }


def _in_policy(name: str) -> Callable[[Path], object]:
    """Acts with an exported policy in which one file has been replaced, and its checksum with it."""

    def read(path: Path) -> None:
        folder = path.parent / "policy"
        folder.mkdir(exist_ok=True)
        for file, whole in _exported().items():
            (folder / file).write_bytes(whole)
        (folder / name).write_bytes(path.read_bytes())
        if name != METADATA_FILE:
            metadata = json.loads(_exported()[METADATA_FILE])
            metadata["files"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
            (folder / METADATA_FILE).write_text(json.dumps(metadata))
        policy = Policy.load(folder)
        policy.act(np.zeros(policy.metadata["observation_dim"], np.float32))

    return read


def _checkpoint(path: Path) -> None:
    check_contents(path, read_checkpoint(path))


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(10, dtype=np.float32).reshape(5, 2))
    return file.getvalue()


@cache
def _trained() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return trained(folder)


def _saved() -> bytes:
    return _trained().read_bytes()


@cache
def _exported() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        whole = export_checkpoint(_trained(), Path(folder, "policy"), "torch").folder
        return {path.name: path.read_bytes() for path in whole.iterdir()}


def _file_of_policy(name: str) -> bytes:
    return _exported()[name]


def _all(*wholes: Callable[[], bytes]) -> st.SearchStrategy[bytes]:
    return st.sampled_from(wholes).flatmap(lambda whole: changed(whole()))


def _policies() -> st.SearchStrategy[bytes]:
    return built_policy(json.loads(_exported()[METADATA_FILE]))


SETTINGS = json.dumps({"env_id": "Pendulum-v1", "action_low": [-1.0], "actions_scaled": True})


def readers() -> dict[str, Reader]:
    """By name."""
    data, policy = (DatasetError,), (PolicyError,)
    later = partial(hdf5_bytes, libver="latest", compression="lzf")
    hdf5 = [hdf5_bytes, partial(hdf5_bytes, compression="gzip"), later]
    settings, weights_file = SETTINGS.encode, "policy.safetensors"
    exported, weights = (partial(_file_of_policy, name) for name in (METADATA_FILE, weights_file))
    all_of_them = [
        Reader("npz", _dataset, npz_bytes, _all(npz_bytes, partial(npz_bytes, True)) | built_npz(), data),
        Reader("hdf5", _dataset, hdf5_bytes, _all(*hdf5) | built_hdf5(), data),
        Reader("config", _config, CONFIG.encode, _all(CONFIG.encode) | built_config(), data),
        Reader("npy", _beside("observations.npy"), _npy, _all(_npy), data),
        Reader("settings", _beside("metadata.json"), settings, _all(settings), data),
        Reader("checkpoint", _checkpoint, _saved, _all(_saved) | built_checkpoint(), (CheckpointError,)),
        Reader("policy", _in_policy(METADATA_FILE), exported, _all(exported) | st.deferred(_policies), policy),
        Reader("weights", _in_policy(weights_file), weights, _all(weights), policy),
    ]
    reports = (ReportError, SuiteError)
    for name, content in run_files().items():
        short = name.rpartition("/")[2].partition(".")[0].partition("_")[0]
        built = {"metrics": run.built_metrics(), "config": run.built_yaml(run.CONFIG)}.get(short)
        whole = partial(bytes, content)
        strategy = _all(whole) | (run.built_json(json.loads(content)) if built is None else built)
        short = "run_config" if short == "config" else short
        all_of_them.append(Reader(short, _in_run(name), whole, strategy, reports))
    return {reader.name: reader for reader in all_of_them}


FILE_NAMES = {"npz": "case.npz", "hdf5": "case.hdf5", "config": "case.yaml"}


def attempt(reader: Reader, folder: Path, content: bytes, pass_over: bool = True) -> None:
    """Reads a file of some content; only named errors are passed over, if any."""
    path = folder / FILE_NAMES.get(reader.name, "case")
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(*reader.named if pass_over else ()):
            reader.read(path)
