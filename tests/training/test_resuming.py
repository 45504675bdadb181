"""Runs are continued from whole checkpoints, with settings that fit them, also after kill -9."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from benchmarks.kill import kill_often
from tests.command_line import TINY
from tests.toy import fit, toy_model
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.cli.lightning import TQLCLI
from tql_lightning.cli.main import main
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import WholeCheckpointIO, base_io, read_checkpoint
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.training.resuming import newest_whole

DATA = "--data.dataset=tests.toy.toy_dataset"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 20 updates that saved after 10 and 20, trained by the command line."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", ["tql"])
        (folder / "tiny.yaml").write_text(TINY)
        assert main(["fit", "--config", "tiny.yaml", DATA, "--trainer.logger=false"]) == 0
    shutil.copytree(folder / "run", folder / "as_it_was")
    return folder


@pytest.fixture
def work(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as working folder, with the run as it was."""
    shutil.rmtree(finished / "run")
    shutil.copytree(finished / "as_it_was", finished / "run")
    monkeypatch.chdir(finished)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["tql"])
    return finished


def continue_run(*arguments: str, checkpoint: str = "last") -> int:
    fixed = ("--config", "tiny.yaml", DATA, "--trainer.logger=false", f"--ckpt_path={checkpoint}")
    return main(["fit", *fixed, "--trainer.max_steps=30", *arguments])


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] = (content[len(content) // 2] + 1) % 256
    path.write_bytes(content)


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before_with_a_warning(work: Path) -> None:
    folder = work / "run" / "checkpoints"
    damage(folder / "last.ckpt")
    with pytest.warns(UserWarning, match=r"(?s)last\.ckpt: damaged.*continuing from .*previous\.ckpt .*at update 10"):
        assert continue_run("--trainer.max_steps=20") == 0
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 20
    assert read_checkpoint(folder / "previous.ckpt")["global_step"] == 10  # not the damaged one


def test_a_copied_run_goes_on_in_the_copy_by_its_own_configuration(work: Path) -> None:
    before = (work / "run" / "checkpoints" / "last.ckpt").read_bytes()
    copy = work / "a copy"
    shutil.copytree(work / "run", copy)
    own = ("--config", str(copy / "config.yaml"), f"--trainer.default_root_dir={copy}")
    with pytest.warns(UserWarning, match="dirpath has changed"):  # Lightning's
        assert main(["fit", *own, "--ckpt_path=last", "--trainer.max_steps=30"]) == 0
    assert read_checkpoint(copy / "checkpoints" / "last.ckpt")["global_step"] == 30
    assert (work / "run" / "checkpoints" / "last.ckpt").read_bytes() == before
    assert main(["fit", *own[:2], "--ckpt_path=last", "--trainer.max_steps=40"]) == 0  # its folder has a space
    assert read_checkpoint(copy / "checkpoints" / "last.ckpt")["global_step"] == 40


def test_without_a_whole_checkpoint_nothing_is_trained(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configuration = (work / "run" / "config.yaml").read_text()
    for name in ("last", "previous"):
        damage(work / "run" / "checkpoints" / f"{name}.ckpt")
    assert continue_run() == 2
    message = capsys.readouterr().err
    assert "last.ckpt: damaged" in message
    assert "previous.ckpt: damaged" in message
    assert "no whole checkpoint is left" in message
    assert (work / "run" / "config.yaml").read_text() == configuration


def test_a_damaged_file_that_is_named_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(work / "run" / "checkpoints" / "last.ckpt")
    assert continue_run(checkpoint="run/checkpoints/last.ckpt") == 2
    assert "run/checkpoints/last.ckpt: damaged" in capsys.readouterr().err


def test_a_checkpoint_from_elsewhere_takes_no_runs_place(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = work / "run" / "checkpoints"
    shutil.copy(folder / "previous.ckpt", "another.ckpt")
    before = (folder / "last.ckpt").read_bytes()
    assert continue_run(checkpoint="another.ckpt") == 2
    message = capsys.readouterr().err
    assert "run holds a run with checkpoints of its own" in message
    assert "found another.ckpt to continue from; continue that run with --ckpt_path=last, or choose" in message
    assert (folder / "last.ckpt").read_bytes() == before
    shutil.rmtree(folder)  # as where it ended before its first checkpoint
    assert continue_run("--trainer.max_steps=20", checkpoint="another.ckpt") == 0


def test_the_most_updates_count_where_several_are_whole(work: Path) -> None:
    folder = work / "run" / "checkpoints"
    shutil.copy(folder / "previous.ckpt", folder / "best.ckpt")  # newer by its date, not by its updates
    shutil.copy(folder / "last.ckpt", folder / "other.ckpt")
    damage(folder / "last.ckpt")
    with pytest.warns(UserWarning, match="continuing from"):
        path, raw = newest_whole([folder / "last.ckpt"])
    assert (path.name, raw["global_step"]) == ("other.ckpt", 20)
    for other in folder.glob("*.ckpt"):
        damage(other)
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        newest_whole([folder / "last.ckpt"])


def test_a_run_without_its_last_two_goes_on_from_another_and_without_any_it_begins_anew(work: Path) -> None:
    folder = work / "run" / "checkpoints"
    expected = read_checkpoint(folder / "last.ckpt")["state_dict"]
    (folder / "previous.ckpt").rename(folder / "best.ckpt")
    (folder / "last.ckpt").unlink()
    with pytest.warns(UserWarning, match=r"(?s)last\.ckpt: no such file.*continuing from .*best\.ckpt .*at update 10"):
        assert continue_run("--trainer.max_steps=20") == 0
    shutil.rmtree(folder)
    logged = work / "run" / "metrics.csv"
    logged.write_text("step,train/td_loss\n7,0.5\n")
    csv = ["--trainer.logger=tql_lightning.loggers.ContinuedCSVLogger", "--trainer.logger.save_dir=run"]
    with pytest.warns(UserWarning, match="run: its run ended before its first checkpoint, and begins anew"):
        assert continue_run("--trainer.max_steps=20", *csv) == 0
    anew = read_checkpoint(folder / "last.ckpt")["state_dict"]
    assert all(value.equal(anew[name]) for name, value in expected.items())
    assert read_metrics(logged)["train/td_loss"][0] == [10, 20]
    assert read_metrics(logged.with_name("metrics_before.csv"))["train/td_loss"][0] == [7]


REFUSED = {
    "a network's size": (["--model.critic.hidden_dim=64"], "model.critic.init_args.hidden_dim: 32 in", "64 now"),
    "another critic": (["--model.critic=tql_lightning.MLPCritic"], "model.critic.class_path", "MLPCritic now"),
    "no entropy control": (["--model.entropy_control=null"], "model.entropy_control", "None now"),
    "discount": (["--model.discount=0.5"], "model.discount: 0.99 in the checkpoint", "0.5 now"),
    "batch size": (["--data.batch_size=4"], "data.batch_size: 8 in the checkpoint", "4 now"),
    "seed": (["--seed_everything=7"], "data.seed: 0 in the checkpoint", "7 now"),
    "n-step returns": (["--data.n_step=2"], "data.n_step: 1 in the checkpoint", "2 now"),
    "other data": (["--data.dataset.size=100"], "data.transitions: 160 in the checkpoint", "80 now"),
    "other rewards": (["--data.dataset.reward_scale=2"], "model.problem.reward_range: (", "now"),
    "other observations": (["--data.dataset.seed=1"], "data.digest: ", "now"),
}


@pytest.mark.parametrize(("arguments", "before", "now"), REFUSED.values(), ids=REFUSED)
def test_what_a_run_was_made_by_cannot_change_and_both_values_are_shown(
    arguments: list[str], before: str, now: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = (work / "run" / "config.yaml").read_text()
    assert continue_run(*arguments) == 2
    message = capsys.readouterr().err
    assert before in message
    assert now in message
    assert "--force=true" in message
    assert (work / "run" / "config.yaml").read_text() == configuration


def test_what_does_no_harm_is_applied_and_force_applies_the_rest(work: Path) -> None:
    harmless = ["--model.tau=0.5", "--model.optimisation.learning_rate=0.01", "--data.updates_per_step=5"]
    harmless += ["--data.storage=cpu", "--model.normalize_q_loss=true", "--model.extraction=best_of_n"]
    harmless += ["--trainer.precision=bf16-mixed", "--trainer.log_every_n_steps=5"]
    assert continue_run(*harmless) == 0
    raw = read_checkpoint(work / "run" / "checkpoints" / "last.ckpt")
    assert (raw["global_step"], raw["hyper_parameters"]["tau"]) == (30, 0.5)
    assert raw["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.01
    assert continue_run("--trainer.max_steps=40", "--data.batch_size=4", "--force=true") == 0
    raw = read_checkpoint(work / "run" / "checkpoints" / "last.ckpt")
    assert (raw["global_step"], raw["OfflineDataModule"]["stream"]["batch_size"]) == (40, 4)


@pytest.mark.parametrize(
    ("before", "now", "kind"), [("32-true", "bf16-mixed", "float32"), ("64-true", "32-true", "float32")]
)
def test_a_run_goes_on_in_another_precision(before: str, now: str, kind: str, tmp_path: Path) -> None:
    last = LastCheckpoint(str(tmp_path), every_n_updates=5)
    fit(tmp_path, toy_model(), 5, [last], precision=before)
    model = toy_model()
    trainer = fit(tmp_path, model, 10, [last], ckpt_path=tmp_path / "last.ckpt", precision=now)
    assert trainer.global_step == 10
    assert {str(value.dtype).removeprefix("torch.") for value in model.state_dict().values()} == {kind}


def test_validate_makes_nothing_of_a_forged_checkpoint(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    raw = read_checkpoint(work / "run" / "checkpoints" / "last.ckpt")
    raw["hyper_parameters"]["critic"] = {"class_path": "antigravity.Critic", "init_args": {}}
    torch.save(raw, work / "forged.ckpt")
    assert main(["validate", "--config", "tiny.yaml", DATA, "--ckpt_path=forged.ckpt"]) == 2
    assert "TQL_TRUST=antigravity" in capsys.readouterr().err
    assert "antigravity" not in sys.modules


def test_other_plugins_leave_checkpoints_whole_and_another_writer_is_told_of(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Instantiated(TQLCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            """Trains nothing."""

    def checkpoint_io(plugins: list[Any]) -> Any:
        (work / "plugins.yaml").write_text(yaml.safe_dump({"trainer": {"plugins": plugins}}))
        arguments = ["fit", "--config", "tiny.yaml", "--config", "plugins.yaml", DATA, "--trainer.max_epochs=-1"]
        monkeypatch.setattr(sys, "argv", ["tql", *arguments])
        return Instantiated().trainer.strategy.checkpoint_io

    precision = {"class_path": "lightning.pytorch.plugins.MixedPrecision"}
    precision["init_args"] = {"precision": "bf16-mixed", "device": "cpu"}  # type: ignore[assignment]
    assert isinstance(checkpoint_io([precision]), WholeCheckpointIO)
    found = checkpoint_io([{"class_path": "lightning.pytorch.plugins.io.AsyncCheckpointIO"}])
    assert isinstance(found, AsyncCheckpointIO)
    assert isinstance(base_io(found), WholeCheckpointIO)
    plain = {"class_path": "lightning.fabric.plugins.TorchCheckpointIO"}
    for plugin in (
        plain,
        {"class_path": "lightning.pytorch.plugins.io.AsyncCheckpointIO", "init_args": {"checkpoint_io": plain}},
    ):
        with pytest.warns(UserWarning, match="TorchCheckpointIO writes checkpoints instead of WholeCheckpointIO"):
            checkpoint_io([plugin])


@pytest.mark.slow
def test_training_that_is_killed_five_times_loses_an_interval_at_most_and_ends_where_it_would_have(
    tmp_path: Path,
) -> None:
    kills = kill_often(tmp_path, rounds=5)
    assert (kills.rounds, kills.damaged, kills.fallbacks) == (5, 0, 0)
    assert kills.most_lost <= 5
    assert kills.equal
    assert not list(tmp_path.glob(".*.part"))
