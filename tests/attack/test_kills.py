"""A run with everything switched on is killed at chosen moments; continued, it ends as one that nothing interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.attack.forked import Ran, run_forked
from tql_lightning.callbacks.best_checkpoint import BestCheckpoint
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.evaluation import checkpoint as evaluation_files_writer
from tql_lightning.loggers.csv_logger import MetricsFile
from tql_lightning.run import checkpoint_io, provenance
from tql_lightning.system import files
from tql_lightning.training.algorithm import Algorithm

pytestmark = pytest.mark.slow

SECONDS, MEMORY, LETTERS = 20.0, 2 << 30, 6000  # of the CPU; bytes; characters, with the bar of progress
MEASURED = ("train/updates_per_second", "train/samples_per_second", "train/memory_gb")
CONFIG = """
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 24
  log_every_n_steps: 4
  val_check_interval: 6
  default_root_dir: run
  callbacks:
    - class_path: tql_lightning.callbacks.checkpointing.GracefulInterrupt
    - class_path: tql_lightning.callbacks.attention_entropy.AttentionEntropyMonitor
    - class_path: tql_lightning.callbacks.rollout_evaluation.RolloutEvaluation
      init_args: {episodes: 1, every_n_updates: 8, env_id: "tests.environments:Swing-v0"}
    - class_path: tql_lightning.callbacks.throughput.Throughput
    - class_path: tql_lightning.callbacks.checkpointing.LastCheckpoint
      init_args: {dirpath: "${trainer.default_root_dir}/checkpoints", every_n_updates: 4}
    - class_path: tql_lightning.callbacks.best_checkpoint.BestCheckpoint
      init_args: {dirpath: "${trainer.default_root_dir}/checkpoints"}
model:
  critic:
    class_path: tql_lightning.nn.critic.TransformerCritic
    init_args: {hidden_dim: 16, head_dim: 8, dropout: 0.1}
  policy:
    class_path: tql_lightning.nn.policy.FlowPolicy
    init_args: {hidden_dims: [16], flow_steps: 2}
data:
  batch_size: 8
"""
FIT = ("fit", "--config", "config.yaml", "--data.dataset=tests.toy.toy_dataset")


def kills_at(owner: object, name: str, call: int, after: bool = False) -> Callable[[], None]:
    """Prepares a process that is killed when a function is called so many times, before it works or after."""

    def prepare() -> None:
        work: Any = getattr(owner, name)
        calls = [0]

        def struck(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            made = work(*arguments, **named)
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return made

        setattr(owner, name, struck)

    return prepare


MOMENTS: dict[str, Callable[[], None]] = {
    "before its configuration is written": kills_at(provenance, "write_text_whole", 1),
    "at the first update": kills_at(Algorithm, "training_step", 1),
    "at an update after a checkpoint": kills_at(Algorithm, "training_step", 11),
    "at the last update": kills_at(Algorithm, "training_step", 24),
    "after the last update": kills_at(Algorithm, "training_step", 24, after=True),
    "before a checkpoint is written": kills_at(checkpoint_io, "write_checkpoint", 3),
    "while a checkpoint is written": kills_at(torch, "save", 4, after=True),
    "before a file is flushed": kills_at(os, "fsync", 9),
    "after a file was flushed": kills_at(os, "fsync", 14, after=True),
    "before a file takes its place": kills_at(Path, "replace", 8),
    "after a file took its place": kills_at(Path, "replace", 11, after=True),
    "before its folder is flushed": kills_at(files, "_flush_folder", 5),
    "before metrics are written": kills_at(MetricsFile, "save", 3),
    "after metrics were written": kills_at(MetricsFile, "save", 4, after=True),
    "while the columns of the metrics change": kills_at(MetricsFile, "_write_whole", 1, after=True),
    "in a validation": kills_at(Algorithm, "validation_step", 5),
    "after a validation": kills_at(Algorithm, "on_validation_epoch_end", 2, after=True),
    "in an evaluation": kills_at(RolloutEvaluation, "_play", 2),
    "before an evaluation is written": kills_at(evaluation_files_writer, "write_text_whole", 2),
    "after an evaluation was written": kills_at(evaluation_files_writer, "write_text_whole", 2, after=True),
    "before the best checkpoint is written": kills_at(BestCheckpoint, "_save_checkpoint", 1),
    "after the best checkpoint was written": kills_at(BestCheckpoint, "_save_checkpoint", 1, after=True),
    "at the end": kills_at(Algorithm, "on_train_end", 1),
}


def outcome(folder: Path) -> dict[str, Any]:
    """What a run leaves that does not depend on clocks: weights, optimizer, metrics, evaluations, names of files."""
    raw = checkpoint_io.read_checkpoint(folder / "checkpoints" / "last.ckpt")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    measured = [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]
    return {
        "update": raw["global_step"],
        "weights": {name: value.tolist() for name, value in raw["state_dict"].items()},
        "optimizer": str(raw["optimizer_states"]),
        "rows": sorted((row for row in measured if len(row) > 2), key=lambda row: (int(row["step"]), sorted(row))),
        "evaluations": {path.name: json.loads(path.read_text()) for path in (folder / "evaluations").glob("*.json")},
        "best": checkpoint_io.read_checkpoint(folder / "checkpoints" / "best.ckpt")["global_step"],
        "files": sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if not path.name.startswith(("events.out", "metrics_before")) and "superseded" not in path.parts
        ),
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    (folder / "home").mkdir()
    return folder


def begin(base: Path, name: str) -> Path:
    folder = base / name
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(base: Path) -> dict[str, Any]:
    folder = begin(base, "uninterrupted")
    ran = run_forked(folder, FIT)
    assert ran.code == 0, ran.output
    return outcome(folder / "run")


def assert_modest(ran: Ran) -> None:
    assert ran.imported == ()
    assert ran.memory < MEMORY
    assert ran.seconds < SECONDS
    assert len(ran.output) < LETTERS


def test_there_are_more_than_fifteen() -> None:
    assert len(MOMENTS) >= 15


@pytest.mark.parametrize("name", MOMENTS)
def test_a_run_that_is_killed_and_continued_is_the_uninterrupted_one(
    name: str, base: Path, uninterrupted: dict[str, Any]
) -> None:
    folder = begin(base, name.replace(" ", "_"))
    killed = run_forked(folder, FIT, MOMENTS[name])
    assert killed.code == -signal.SIGKILL, killed.output
    assert_modest(killed)
    begun = (folder / "run" / "config.yaml").exists()
    continued = run_forked(folder, (*FIT, *(["--ckpt_path=last"] if begun else [])))
    assert continued.code == 0, continued.output
    assert "Traceback" not in continued.output
    assert_modest(continued)
    assert outcome(folder / "run") == uninterrupted
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "run"}
    assert {path.name for path in base.joinpath("home").iterdir()} <= {".cache", ".config"}  # of libraries
