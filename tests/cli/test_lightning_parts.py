"""Lightning's parts on the command line, and what is said before training starts."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI

from tests.command_line import call_tql
from tests.toy import toy_dataset
from tql_lightning.algorithms.tql import TQL
from tql_lightning.cli.errors import short_message
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.evaluation.checkpoint import evaluate_checkpoint
from tql_lightning.export.comparison import ExportError
from tql_lightning.export.onnx_files import write_onnx
from tql_lightning.run.checkpoint_io import read_checkpoint
from tql_lightning.run.folder import CONFIG_FILE, evaluation_files

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


ADD, LOGGER = "--trainer.callbacks+=", "--trainer.logger="
TENSORBOARD = "{class_path: tql_lightning.loggers.ContinuedTensorBoardLogger, init_args: {save_dir: run}}"
MISSING: dict[str, tuple[str, str, str]] = {
    "pictures": ("matplotlib", f"{ADD}AttentionMap", "AttentionMap needs matplotlib, .* pip install matplotlib"),
    "curves": ("matplotlib", f"{ADD}TrainingPlots", "TrainingPlots needs matplotlib, .* pip install matplotlib"),
    "device": ("psutil", f"{ADD}DeviceStatsMonitor", "pip install -U 'psutil'"),
    "summary": ("rich", f"{ADD}RichModelSummary", "pip install rich"),
    "trackio": ("trackio", f"{LOGGER}TrackioLogger", "trackio is not installed; pip install trackio"),
    "W&B": ("wandb", f"{LOGGER}WandbLogger", "pip install -U 'wandb"),
    "TensorBoard": ("tensorboard", f"{LOGGER}{TENSORBOARD}", "pip install tensorboard"),
    "Minari": ("minari", "--data.dataset=minari:mine/made-v0", "pip install 'tql-lightning.minari.'"),
    "OGBench": ("ogbench", "--data.dataset=cube-single-play-singletask-task1-v0", "'tql-lightning.ogbench.'"),
    "D4RL": ("h5py", "--data.dataset=mine.hdf5", "pip install 'tql-lightning.d4rl.'"),
}


@pytest.mark.parametrize(
    "what", [pytest.param(key, marks=() if key == "pictures" else pytest.mark.slow) for key in MISSING]
)
def test_a_missing_package_is_said_before_anything_is_written(
    what: str, command_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, argument, expected = MISSING[what]
    (command_folder / "mine.hdf5").touch()
    for name in [name for name in sys.modules if f"{name}.".startswith((f"{package}.", "torch.utils.tensorboard."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    refused = call_tql(command_folder, *FIT, argument)
    assert refused.returncode == 2
    assert re.search(expected, refused.stderr), refused.stderr
    assert not (command_folder / "run" / CONFIG_FILE).exists()


BENCHMARK = ("benchmark", "quickstart", "--engine=ray")
SEARCH = ("--methods=tql", "--search", "model.discount=uniform(0.9,0.99)")


@pytest.mark.parametrize(
    ("package", "arguments", "expected"),
    [
        ("ray", BENCHMARK, "pip install 'tql-lightning[cluster]'"),
        ("optuna", (*BENCHMARK, *SEARCH), "pip install 'tql-lightning[cluster]'"),
        ("ogbench", ("collect", "cube-single", "--output=x.npz"), "pip install 'tql-lightning[ogbench]'"),
        ("shtab", ("completion", "bash"), "pip install 'tql-lightning[completion]'"),
        ("imageio", ("evaluate", "x.ckpt", "--video=v"), "pip install tql-lightning[video]"),
    ],
)
def test_a_command_without_its_package_says_what_to_install(
    package: str, arguments: tuple[str, ...], expected: str, command_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    refused = call_tql(command_folder, *arguments)
    assert refused.returncode == 2
    assert expected in refused.stderr


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_an_export_without_its_packages_is_refused_before_it_writes(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    nothing: Any = None
    with pytest.raises(ExportError, match=r"pip install .tql-lightning.export."):
        write_onnx(nothing, {}, tmp_path)


def test_any_other_missing_package_is_named_with_its_command() -> None:
    with pytest.raises(ModuleNotFoundError) as missing:
        import_module("no_such_package.part")
    assert "pip install no_such_package\n" in str(short_message(missing.value))


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


@pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers", "ignore:`isinstance")
def test_lightnings_own_cli_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py"])
    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=False)  # the default, which `tql` changes
    dataset = ["--data.dataset=tests.toy.toy_dataset", "--data.dataset.size=100", "--data.batch_size=8"]
    model = ["--model.observation_dim=3", "--model.action_dim=1", "--model.critic=MLPCritic"]
    trainer = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.max_steps=2"]
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}"]
    cli = LightningCLI(
        TQL, OfflineDataModule, args=["fit", *dataset, *model, *trainer, *quiet], seed_everything_default=0
    )
    assert cli.trainer.global_step == 2
    assert cli.datamodule.dataset.digest() == toy_dataset(100).digest()


RUN = ("--trainer.log_every_n_steps=10", "--trainer.max_steps=60")
STOP = {"mode": "max", "patience": 2, "min_delta": 1e9}
PATIENT = tuple(f"--trainer.callbacks.{name}={value}" for name, value in STOP.items())
EVERY_TEN = (*EVALUATE, "--trainer.callbacks.every_n_updates=10")


def updates_of(folder: Path, key: str) -> list[int]:
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get(key)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "update"),
    [
        ((*stop_early("eval/return"), *PATIENT), 20),
        ((*stop_early("train/td_loss"), *PATIENT), 30),
        (("--trainer.limit_train_batches=25", "--trainer.max_epochs=1"), 25),
        (("--trainer.max_time=00:00:00:02", "--trainer.max_steps=100000"), None),
        ((f"{ADD}Timer", "--trainer.callbacks.duration=00:00:00:02", "--trainer.max_steps=100000"), None),
        ((f"{ADD}tests.cli.test_lightning_parts.Stops",), 33),
    ],
    ids=["eval/return", "train/td_loss", "max_epochs", "max_time", "Timer", "should_stop"],
)
def test_a_run_of_the_command_is_evaluated_where_it_ends(
    arguments: tuple[str, ...], update: int | None, command_folder: Path
) -> None:
    fitted = call_tql(command_folder, *FIT, *RUN, *EVERY_TEN, *arguments)
    assert fitted.returncode == 0, fitted.stderr
    last = read_checkpoint(command_folder / "run" / "checkpoints" / "last.ckpt")["global_step"]
    assert update in (None, last)
    assert updates_of(command_folder, "eval/return") == [*range(0, last, 10), last]


class Stops(Callback):
    """Ends training as a user's callback does; shows where the bars stand."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:  # type: ignore[override]
        trainer.should_stop = trainer.global_step == 33


class Shows(Callback):
    """Prints where a bar stands at the end."""

    def on_train_end(self, trainer: Any, *_: Any) -> None:  # type: ignore[override]
        bar = trainer.progress_bar_callback.train_progress_bar
        at = getattr(bar, "n", None)
        print("bar", bar.completed if at is None else at, bar.total)


def fails_at_four(trainer: Any, *_: Any) -> None:
    """A fault of a user's hook."""
    if trainer.global_step == 4:
        raise RuntimeError("a fault of the user's hook")


@pytest.mark.slow
def test_what_an_exception_leaves_is_continued_only_where_it_is_named(command_folder: Path) -> None:
    saves = (f"{ADD}OnExceptionCheckpoint", "--trainer.callbacks.dirpath=fault")
    fails = (
        f"{ADD}LambdaCallback",
        "--trainer.callbacks.on_train_batch_start=tests.cli.test_lightning_parts.fails_at_four",
    )
    averages = (f"{ADD}WeightAveraging", f"{ADD}ModelSummary")
    with pytest.raises(RuntimeError, match="of the user's hook"):
        call_tql(command_folder, *FIT, *averages, *saves, *fails)
    left = command_folder / "fault" / "on_exception.ckpt"
    assert read_checkpoint(left)["global_step"] == 4
    anew = call_tql(command_folder, *FIT, *saves, "--trainer.default_root_dir=other", "--seed_everything=5")
    assert anew.returncode == 2
    assert "continue that run with --ckpt_path=fault/on_exception.ckpt, or remove it" in anew.stderr
    assert read_checkpoint(left)["global_step"] == 4
    continued = call_tql(command_folder, *FIT, *averages, *saves, "--ckpt_path=fault/on_exception.ckpt")
    assert continued.returncode == 0, continued.stderr
    assert read_checkpoint(command_folder / "run" / "checkpoints" / "last.ckpt")["global_step"] == 20
    assert not left.exists()  # the run has ended well
    other = call_tql(command_folder, *FIT, *saves, "--trainer.default_root_dir=other")
    assert other.returncode == 0, other.stderr
    assert "without a model" not in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_a_bar_of_the_command_counts_to_the_last_update(bar: str, command_folder: Path) -> None:
    parts = (f"{ADD}tests.cli.test_lightning_parts.Shows", f"{ADD}{bar}")
    scheduled = "--model.optimisation.schedule_updates=20"
    for more in (("--trainer.max_steps=10",), ("--ckpt_path=last",)):
        fitted = call_tql(command_folder, *FIT, *parts, scheduled, *more)
        assert fitted.returncode == 0, fitted.stderr
    assert "bar 20 20" in fitted.stdout


@pytest.mark.slow
def test_averaged_weights_are_evaluated_as_they_are_saved(command_folder: Path) -> None:
    averaging = (f"{ADD}EMAWeightAveraging", "--trainer.callbacks.decay=0.9")
    fitted = call_tql(command_folder, *FIT, *EVERY_TEN, *averaging)
    assert fitted.returncode == 0, fitted.stderr
    assert updates_of(command_folder, "eval/return") == [0, 10, 20]
    summary = json.loads(evaluation_files(command_folder / "run")[20].read_text())["summary"]
    last = command_folder / "run" / "checkpoints" / "last.ckpt"
    played = evaluate_checkpoint(last, 1, 0, env_id="tests.environments:Swing-v0")
    assert played["return"] == pytest.approx(summary["return"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((f"{ADD}GradientAccumulationScheduler", "--trainer.callbacks.scheduling={0: 2}"), "set data.batch_size"),
        ((f"{ADD}BatchSizeFinder",), "set data.batch_size"),
        ((f"{ADD}LearningRateFinder",), "set model.optimisation.learning_rate"),
        ((f"{ADD}StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.001"), "use EMAWeightAveraging"),
        ((f"{ADD}BackboneFinetuning",), "requires_grad_"),
        ((f"{ADD}ModelPruning", "--trainer.callbacks.pruning_fn=l1_unstructured"), "prune an exported policy"),
        (("--trainer.overfit_batches=1",), "trainer.overfit_batches: expected 0"),
        (("--trainer.limit_train_batches=0.5",), "trainer.limit_train_batches: expected a whole number"),
        (("--trainer.val_check_interval=0.5",), "trainer.val_check_interval: expected a whole number"),
        ((f"{ADD}ModelCheckpoint", "--trainer.callbacks.monitor=val_loss"), "val/: action_error"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_does_not_fit_is_refused_by_the_command(
    arguments: tuple[str, ...], expected: str, command_folder: Path
) -> None:
    refused = call_tql(command_folder, *FIT, *arguments)
    assert refused.returncode == 2
    assert expected in refused.stderr
    assert not list(command_folder.rglob("*.ckpt"))


def test_windows_is_refused_with_the_systems_that_work() -> None:
    code = "import sys; sys.platform = 'win32'; import tql_lightning"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "expected Linux or macOS, found Windows" in refused.stderr
