"""The weights of the best evaluation, kept."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from tests import environments  # noqa: F401  (registers)
from tests.toy import fit, toy_model
from tql_lightning.callbacks.best_checkpoint import BestCheckpoint
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.run.checkpoint_io import WholeCheckpointIO, read_checkpoint
from tql_lightning.run.folder import evaluation_files

TOY = "tests.environments:Toy-v0"
SWING = "tests.environments:Swing-v0"


def test_the_best_of_a_continued_run_is_not_overwritten_by_a_worse_one(tmp_path: Path) -> None:
    best = BestCheckpoint(str(tmp_path / "best"))
    last = LastCheckpoint(str(tmp_path), every_n_updates=5)
    trainer = fit(tmp_path, toy_model(), 5, [RolloutEvaluation(2, 5, env_id=TOY), best, last])
    (record,) = [path for update, path in evaluation_files(tmp_path).items() if update == 5]
    better = json.loads(record.read_text())
    better["summary"]["success_rate"] = 2.0
    record.write_text(json.dumps(better))
    again = BestCheckpoint(str(tmp_path / "best"))
    fit(tmp_path, toy_model(), 10, [RolloutEvaluation(2, 5, env_id=TOY), again, last], ckpt_path=tmp_path / "last.ckpt")
    assert float(again.best_model_score or 0) == 2.0
    assert torch.load(tmp_path / "best" / "best.ckpt", weights_only=True)["global_step"] == trainer.global_step == 5


def test_what_a_killed_run_had_come_to_is_no_part_of_the_run_that_goes_on_from_before(tmp_path: Path) -> None:
    best_file, last_file = tmp_path / "best" / "best.ckpt", tmp_path / "last.ckpt"
    for updates, rate in ((5, 1e-3), (10, 1e-3), (8, 1e-2)):
        best, last = BestCheckpoint(str(best_file.parent)), LastCheckpoint(str(tmp_path), every_n_updates=5)
        model, evaluation = toy_model(learning_rate=rate), RolloutEvaluation(2, 5, env_id=SWING)
        continued = last_file if last_file.exists() else None
        fit(tmp_path, model, updates, [evaluation, best, last], ckpt_path=continued, plugins=WholeCheckpointIO())
        if updates == 10:  # as if update 10 had been the best, and the run killed before it saved
            best_file.write_bytes(last_file.read_bytes())
            last_file.write_bytes((tmp_path / "previous.ckpt").read_bytes())
            record = evaluation_files(tmp_path)[10]
            record.write_text(json.dumps({"summary": {"return": 1e6}}))
    assert list(evaluation_files(tmp_path)) == [0, 5, 8]
    assert evaluation.result is not None
    assert float(best.best_model_score or 0) == pytest.approx(evaluation.result.summary()["return"])
    kept = read_checkpoint(best_file)
    assert kept["global_step"] == 8
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in kept["state_dict"].items())
    set_aside = best_file.parent / "superseded" / "best.ckpt", record.parent / "superseded" / record.name
    assert read_checkpoint(set_aside[0])["global_step"] == 10
    assert json.loads(set_aside[1].read_text())["summary"] == {"return": 1e6}


def test_a_damaged_best_is_told_of_and_the_next_evaluation_takes_its_place(tmp_path: Path) -> None:
    last, best_file = LastCheckpoint(str(tmp_path), every_n_updates=5), tmp_path / "best" / "best.ckpt"
    for updates in (5, 10):
        best = BestCheckpoint(str(best_file.parent))
        evaluation = RolloutEvaluation(2, 5, env_id=TOY)
        continued = tmp_path / "last.ckpt" if updates > 5 else None
        told = pytest.warns(UserWarning, match=r"best\.ckpt: damaged") if continued else nullcontext()
        with told:
            fit(tmp_path, toy_model(), updates, [evaluation, best, last], ckpt_path=continued)
        assert read_checkpoint(best_file)["global_step"] == updates
        best_file.write_bytes(best_file.read_bytes()[:-1000])
