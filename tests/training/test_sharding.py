"""Weights in shares on two processes: the numbers, checkpoints, evaluations and pictures of one process."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.command_line import PATIENCE
from tests.sharded_runs import METHODS, MLP, TRANSFORMER, train, train_methods, train_watched
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.run.checkpoint_io import read_checkpoint
from tql_lightning.run.folder import before_divergence_file, evaluation_files
from tql_lightning.testing.ports import quiet_port

TOLERANCE = 1e-9
pytestmark = pytest.mark.slow  # two processes of their own; in little: the contract tests


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what one process and two sharded ones trained."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    train_watched(folder / "one", 1)
    run_two_processes(folder, folder / "one" / "previous.ckpt")
    return folder


def run_two_processes(*arguments: Path) -> None:
    command = [sys.executable, "-m", "tests.sharded_runs", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MASTER_PORT": str(quiet_port())}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert finished.returncode == 0, finished.stderr


def numbers(path: Path) -> dict[str, Tensor]:
    """Every number of a checkpoint that training changes, by a name of its own."""
    raw = read_checkpoint(path)
    (optimizer,) = raw["optimizer_states"]
    state = {f"{number}.{name}": value for number, entry in optimizer["state"].items() for name, value in entry.items()}
    return raw["state_dict"] | state | {"updates": torch.tensor(raw["global_step"])}


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = numbers(one), numbers(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        difference = float((value - theirs[name]).abs().max())
        assert difference <= TOLERANCE, f"{name}: differs by {difference:.3g}"


def test_two_sharded_processes_make_the_updates_of_one(runs: Path) -> None:
    """Weights, target, temperatures and the optimizer's state, in float64."""
    assert_same(runs / "two" / "last.ckpt", runs / "one" / "last.ckpt")


def test_two_sharded_processes_make_the_updates_of_one_with_every_kind_of_critic(tmp_path: Path) -> None:
    """A flow critic, an autoregressive one under entropy control, and a policy that trains at every other update."""
    train_methods(tmp_path / "one", 1)
    run_two_processes(tmp_path)
    for name in METHODS:
        assert_same(tmp_path / "two" / f"{name}.ckpt", tmp_path / "one" / f"{name}.ckpt")


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_sharded_run_is_continued_by_one_process(runs: Path, tmp_path: Path) -> None:
    continued = train(tmp_path, 1, TRANSFORMER, 10, ckpt_path=runs / "two" / "previous.ckpt")
    continued.save_checkpoint(tmp_path / "continued.ckpt")
    assert_same(tmp_path / "continued.ckpt", runs / "one" / "last.ckpt")


def test_a_run_of_one_process_is_continued_sharded(runs: Path) -> None:
    assert_same(runs / "continued.ckpt", runs / "one" / "last.ckpt")


def test_a_sharded_run_is_continued_by_ddp(runs: Path) -> None:
    assert_same(runs / "ddp.ckpt", runs / "one" / "last.ckpt")


def test_nan_in_one_process_stops_all_and_an_mlps_weights_before_it_are_kept_whole(runs: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in (runs / "diverged" / "divergence").glob("*.npz")) == [
        "update_000000005.npz",
        "update_000000005_process_1.npz",
    ]
    kept = read_checkpoint(before_divergence_file(runs / "diverged", 5))["state_dict"]
    expected = train(tmp_path, 1, MLP, 5).lightning_module.state_dict()
    assert kept.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(kept[name], value, rtol=0.0, atol=TOLERANCE)


def test_a_sharded_runs_checkpoint_is_that_of_any_run(runs: Path) -> None:
    for part in ("two", "one"):
        model, raw = load_checkpoint(runs / part / "last.ckpt")
        assert raw["global_step"] == 10
        assert {type(value) for value in model.state_dict().values()} == {Tensor}
    assert b"tql-sha256:" in (runs / "two" / "last.ckpt").read_bytes()[-80:]


def test_sharded_processes_play_the_episodes_of_one(runs: Path) -> None:
    """Their shares are of different lengths."""
    records: list[dict[int, Any]] = []
    for part in ("one", "two"):
        files = evaluation_files(runs / part)
        records.append({update: json.loads(path.read_text()) for update, path in files.items()})
    assert list(records[0]) == [0, 5, 10]
    assert records[0] == records[1]


def logged(folder: Path) -> dict[tuple[str, str], float]:
    """Values in metrics.csv by step and key."""
    found = {}
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            found |= {(row["step"], key): float(value) for key, value in row.items() if value and key != "step"}
    return found


def test_losses_gradients_entropies_and_slopes_are_logged_as_by_one_process(runs: Path) -> None:
    one, two = logged(runs / "one"), logged(runs / "two")
    assert one.keys() == two.keys()
    keys = {key for _, key in one}
    assert {"train/critic_loss", "train/gradient_norm/critic", "train/q_slope", "val/td_loss"} <= keys
    assert "train/head_entropy/layer_0/value/head_0" in keys
    assert one == pytest.approx(two, rel=1e-5)
    assert sorted(path.name for path in (runs / "two" / "pictures").rglob("*.png")) == sorted(
        path.name for path in (runs / "one" / "pictures").rglob("*.png")
    )
