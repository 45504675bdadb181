"""Readers, the files that each is tried with, and the errors that it may raise."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from hypothesis import strategies as st

from tests.command_line import ParsedOnly
from tests.data.test_transitions import arrays
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
from tests.toy import toy_model
from tql_lightning.algorithms.loading import check_contents
from tql_lightning.benchmark.suite import SuiteError
from tql_lightning.benchmark.summary import summary_of
from tql_lightning.cli.configs import find_config, packaged_configs
from tql_lightning.cli.errors import short_message
from tql_lightning.data.named import load_dataset
from tql_lightning.data.sources.npy_folder import save_npy_folder
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.export.policy_folder import PolicyError, read_metadata
from tql_lightning.report.page import write_report
from tql_lightning.report.runs import ReportError
from tql_lightning.report.table_formats import TableFormat, render_table
from tql_lightning.run.checkpoint_io import CheckpointError, read_checkpoint


@dataclass(frozen=True)
class Reader:
    """How to read a file, named so, and what to try it with."""

    name: str
    read: Callable[[Path], object]
    files: st.SearchStrategy[bytes]
    named: tuple[type[Exception], ...]


@cache
def _command_line() -> Any:
    sys.argv = ["tql", "fit", "--config", str(packaged_configs()["quickstart"])]
    return ParsedOnly().parser


def _config(path: Path) -> None:
    """As `tql fit` does; whatever it tells the user in a few lines is an error with a name."""
    try:
        config = str(packaged_configs()["tql"])
        _command_line().parse_args(["fit", "--config", config, "--config", find_config(str(path))])
    except Exception as error:
        if short_message(error) is None:
            raise
        raise DatasetError(str(error)) from error


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
            for form in get_args(TableFormat):
                render_table(summary_of([folder]), form)
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


def _metadata(path: Path) -> object:
    return read_metadata(path.parent)


def _checkpoint(path: Path) -> None:
    check_contents(path, read_checkpoint(path))


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(10, dtype=np.float32).reshape(5, 2))
    return file.getvalue()


@cache
def _saved() -> bytes:
    model, file = toy_model(), io.BytesIO()
    data = {
        "name": "toy",
        "env_id": "Pendulum-v1",
        "action_low": [-2.0],
        "action_high": [2.0],
        "reference_scores": None,
    }
    raw = {"state_dict": model.state_dict(), "global_step": 3, "hyper_parameters": dict(model.hparams)}
    torch.save(raw | {"OfflineDataModule": data}, file)
    return file.getvalue()


def _all(*wholes: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(wholes).flatmap(changed)


SETTINGS = json.dumps({"env_id": "Pendulum-v1", "action_low": [-1.0], "actions_scaled": True}).encode()
EXPORTED = {"format_version": 1, "format": "torch", "files": {}, "extraction": "fql", "observation_dim": 3}
EXPORTED |= {"action_dim": 1, "action_chunk": 1, "noise_shape": [1], "action_low": [-1.0], "action_high": [1.0]}
EXPORTED |= dict.fromkeys(("env_id", "dataset", "updates", "architecture", "verification", "versions"))


def readers() -> dict[str, Reader]:
    """By name."""
    data = (DatasetError,)
    hdf5 = [hdf5_bytes(), hdf5_bytes(compression="gzip"), hdf5_bytes(libver="latest", compression="lzf")]
    all_of_them = [
        Reader("npz", lambda path: load_dataset(str(path)), _all(npz_bytes(), npz_bytes(True)) | built_npz(), data),
        Reader("hdf5", lambda path: load_dataset(str(path)), _all(*hdf5) | built_hdf5(), data),
        Reader("config", _config, _all(CONFIG.encode()) | built_config(), data),
        Reader("npy", _beside("observations.npy"), _all(_npy()), data),
        Reader("settings", _beside("metadata.json"), _all(SETTINGS), data),
        Reader("checkpoint", _checkpoint, _all(_saved()) | built_checkpoint(), (CheckpointError,)),
        Reader("policy", _metadata, _all(json.dumps(EXPORTED).encode()) | built_policy(EXPORTED), (PolicyError,)),
    ]
    reports = (ReportError, SuiteError)
    for name, whole in run_files().items():
        short = name.rpartition("/")[2].partition(".")[0].partition("_")[0]
        built = {"metrics": run.built_metrics(), "config": run.built_yaml(run.CONFIG)}.get(short)
        strategy = _all(whole) | (run.built_json(json.loads(whole)) if built is None else built)
        short = "run_config" if short == "config" else short
        all_of_them.append(Reader(short, _in_run(name), strategy, reports))
    return {reader.name: reader for reader in all_of_them}


FILE_NAMES = {"npz": "case.npz", "hdf5": "case.hdf5", "config": "case.yaml", "policy": "metadata.json"}


def attempt(reader: Reader, folder: Path, content: bytes, pass_over: bool = True) -> None:
    """Reads a file of some content; only named errors are passed over, if any."""
    path = folder / FILE_NAMES.get(reader.name, "case")
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(*reader.named if pass_over else ()):
            reader.read(path)
