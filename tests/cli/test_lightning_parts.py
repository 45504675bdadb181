"""Lightning's parts on the command line, and what is said before training starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from tests.command_line import call_tql
from tests.toy import toy_dataset
from tql_lightning.algorithms.tql import TQL
from tql_lightning.cli.errors import short_message
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.run.folder import CONFIG_FILE

FIT = ("fit", "--config", "tiny.yaml", "--data.dataset=tests.toy.toy_dataset")
SWING = "--trainer.callbacks.env_id=tests.environments:Swing-v0"
EVALUATE = ("--trainer.callbacks+=RolloutEvaluation", "--trainer.callbacks.episodes=1", SWING)


def stop_early(monitor: str) -> tuple[str, ...]:
    return "--trainer.callbacks+=EarlyStopping", f"--trainer.callbacks.monitor={monitor}"


@pytest.mark.slow
def test_a_refused_monitor_leaves_a_folder_in_which_the_mended_run_starts(command_folder: Path) -> None:
    refused = call_tql(command_folder, *FIT, *EVALUATE, *stop_early("eval/retrun"))
    assert refused.returncode == 2
    assert "found eval/retrun; did you mean eval/return" in refused.stderr
    assert "eval/: failures, length" in refused.stderr
    timed = ("--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:01:00:00")
    with pytest.warns(UserWarning, match="begins anew"):
        mended = call_tql(command_folder, *FIT, *EVALUATE, *stop_early("eval/return"), *timed)
    assert mended.returncode == 0, mended.stderr
    callbacks = yaml.safe_load((command_folder / "run" / CONFIG_FILE).read_text())["trainer"]["callbacks"]
    assert callbacks[-1]["init_args"]["interval"] == "step"  # an enum in Lightning
    again = call_tql(command_folder, *FIT)
    assert "holds an earlier run" in again.stderr


def test_a_development_run_leaves_no_folder(command_folder: Path) -> None:
    tried = call_tql(command_folder, *FIT, *EVALUATE, "--trainer.fast_dev_run=2")
    assert tried.returncode == 0, tried.stderr
    assert not (command_folder / "run").exists()


@pytest.mark.parametrize("callback", ["AttentionMap", "TrainingPlots"])
def test_a_missing_package_is_said_before_anything_is_written(
    callback: str, command_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused = call_tql(command_folder, *FIT, f"--trainer.callbacks+={callback}")
    assert refused.returncode == 2
    assert f"{callback} needs matplotlib, which is not installed; pip install matplotlib" in refused.stderr
    assert not (command_folder / "run" / CONFIG_FILE).exists()


def test_a_missing_logger_takes_three_lines(command_folder: Path) -> None:
    refused = call_tql(command_folder, *FIT, "--trainer.logger=CometLogger")
    assert refused.returncode == 2
    lines = [line for line in refused.stderr.splitlines() if not line.startswith("Seed")]
    assert len(lines) == 3
    assert "comet" in lines[1]


def test_a_missing_key_of_wandb_takes_two_lines() -> None:
    class UsageError(Exception):
        """W&B's, by its name."""

    message = short_message(UsageError("No API key configured. Use `wandb login` to log in."))
    assert message is not None
    assert len(message.splitlines()) == 2


def test_lightnings_own_cli_builds_model_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py"])
    arguments = ["--data.dataset=tests.toy.toy_dataset", "--data.dataset.size=100", "--data.batch_size=8"]
    arguments += ["--model.observation_dim=3", "--model.action_dim=1", "--trainer.logger=false"]
    cli = LightningCLI(TQL, OfflineDataModule, args=arguments, run=False, save_config_callback=None)
    assert cli.datamodule.dataset.digest() == toy_dataset(100).digest()


def test_windows_is_refused_with_the_systems_that_work() -> None:
    code = "import sys; sys.platform = 'win32'; import tql_lightning"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "expected Linux or macOS, found Windows" in refused.stderr
