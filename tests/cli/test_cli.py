"""The command ``tql``: what it runs, and what a run leaves; for what it says of mistakes see test_errors.py."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.command_line import PATIENCE, TINY, TQL_COMMAND, call_tql, run_tql
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.cli.commands import COMMANDS, evaluate
from tql_lightning.cli.main import main
from tql_lightning.evaluation.checkpoint import evaluate_checkpoint
from tql_lightning.nn.value_loss import HLGauss
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.provenance import read_starts

PENDULUM = ("--config", "tiny.yaml", "--data.dataset=tql_lightning.data.sources.npz.load_npz")
PENDULUM += ("--data.dataset.path=pendulum.npz", "--data.dataset.validation_fraction=0.5")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a dataset was collected and a tiny run was trained, by the command line."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.yaml").write_text(TINY)
    collect = call_tql(folder, "collect", "Pendulum-v1", "--transitions", "800", "--output", "pendulum.npz")
    assert collect.returncode == 0, collect.stderr
    assert "wrote pendulum.npz: 800 transitions in 4 episodes" in collect.stdout
    before = {*folder.iterdir(), folder / "run"}
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("HOME", "TMPDIR"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable)))
        fit = run_tql(folder, "fit", *PENDULUM)
        left = [path for variable in ("HOME", "TMPDIR") for path in Path(os.environ[variable]).iterdir()]
    assert fit.returncode == 0, fit.stderr
    assert {*folder.iterdir()} == before, "a run writes into its own folder"
    assert {path.name for path in left} <= {".cache", ".config"}, "elsewhere only libraries' caches"
    return folder


@pytest.fixture
def restored_run_folder(run_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The same, for a test that goes on with the run: others find it as it was, in whatever order they run."""
    shutil.copytree(run_folder / "run", tmp_path / "as_it_was")
    yield run_folder
    shutil.rmtree(run_folder / "run")
    shutil.copytree(tmp_path / "as_it_was", run_folder / "run")


@pytest.mark.slow
def test_n_step_returns_and_action_chunks_train_and_act_from_one_setting_each(run_folder: Path) -> None:
    settings = ["--data.n_step=2", "--data.action_chunk=4", "--model.discount=0.9", "--trainer.default_root_dir=chunks"]
    trained = call_tql(run_folder, "fit", *PENDULUM, *settings, "--trainer.max_steps=10")
    assert trained.returncode == 0, trained.stderr
    checkpoint = run_folder / "chunks" / "checkpoints" / "last.ckpt"
    model, _ = load_checkpoint(checkpoint)
    assert (model.action_dim, model.env_action_dim, model.action_chunk, model.discount) == (4, 1, 4, 0.9)
    figures = evaluate_checkpoint(checkpoint, episodes=2, seed=0)
    assert figures["lengths"] == [200.0, 200.0]


@pytest.mark.usefixtures("command_folder")
@pytest.mark.parametrize(
    "command",
    ["fit", "validate", "test", "benchmark", "certify", "collect", "evaluate", "export", "quickstart", "report"],
)
def test_help_describes_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert f"\n    {command} " in overview
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    own = capsys.readouterr().out
    assert f"tql {command}" in own
    assert {"export": "--extraction", "report": "--media_mb"}.get(command, "--seed") in own


def test_every_argument_of_a_command_is_explained_by_a_phrase_that_stands_alone() -> None:
    parts = [part for each in COMMANDS.values() for part in (each.values() if isinstance(each, dict) else [each])]
    explained = [line for part in parts for line in re.findall(r"^        (\w+: .)", part.__doc__ or "", re.MULTILINE)]
    assert len(explained) > 40
    assert [line for line in explained if line[-1].islower()] == []


@pytest.mark.usefixtures("command_folder")
def test_export_and_report_write_what_they_say(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = run_folder / "run" / "checkpoints" / "last.ckpt"
    assert main(["export", str(checkpoint), "--format", "torch", "--output", "policy"]) == 0
    assert main(["report", str(run_folder / "run"), "--output", "page.html"]) == 0
    printed = capsys.readouterr().out
    assert "wrote policy: metadata.json, policy.safetensors" in printed
    assert "on 1,000 observations" in printed
    assert "wrote page.html" in printed
    assert "--config tiny.yaml" in Path("page.html").read_text()


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        main(command.split())
    return capsys.readouterr().out


@pytest.mark.usefixtures("command_folder")
def test_help_of_fit_is_what_a_user_sets_first_and_the_rest_by_group(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {}
    for columns, most_lines in ((80, 80), (200, 60)):
        monkeypatch.setenv("COLUMNS", str(columns))
        first = help_of("fit --help", capsys)
        assert len(first.splitlines()) <= most_lines
        assert max(map(len, first.splitlines())) <= min(columns, 120)
        whole[columns] = " ".join(first.split())
        for expected in (
            "--model.tau Share of the critic",
            "--trainer.max_steps Number of updates. [1000000]",
            "[0.99]",
        ):
            assert expected in whole[columns]
    assert whole[80] == whole[200], "broken inside a word"
    assert "{fql, best_of_n, implicit, behaviour_flow} [fql]" in whole[80]
    assert "--trainer.detect_anomaly" not in first
    assert "--model.problem" not in first
    assert "--model.smoothing Settings of its own: --help=model.smoothing." in " ".join(
        help_of("fit --config method/rebrac --help", capsys).split()
    )
    everything = help_of("fit --help=all", capsys)
    explained = " ".join(everything.split())
    assert "--model.tau TAU Share of the critic" in explained
    assert "--trainer.detect_anomaly" in explained
    assert "https://docs.pytorch.org/docs/main/notes/serialization.html#id3" in everything, "broken inside a word"
    assert ":paramref:" not in everything
    part = help_of("fit --help=model.optimisation", capsys)
    assert "--model.optimisation.warmup_updates" in part
    assert "--model.tau" not in part
    assert main(["fit", "--help=optimiser"]) == 2
    assert "--help=optimiser: expected data, model, trainer, all" in capsys.readouterr().err


def completions(script: Path, line: str) -> list[str]:
    """What bash offers at the end of a line."""
    code = """
        source "$1"; line="$2"; COMP_WORDS=($line); [[ $line == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=$line; COMP_POINT=${#line}
        $(complete -p tql | sed -E "s/.* -F ([^ ]+) .*/\\1/") tql "${COMP_WORDS[COMP_CWORD]}"
        printf "%s\\n" "${COMPREPLY[@]}"
    """
    finished = subprocess.run(["bash", "-c", code, "bash", script, line], check=True, capture_output=True, text=True)
    assert finished.stderr == ""
    return [each.strip() for each in finished.stdout.splitlines()]


@pytest.mark.usefixtures("command_folder")
def test_commands_options_and_configurations_are_completed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "tql.bash"
    script.write_text(capsys.readouterr().out)
    assert completions(script, "tql ev") == ["evaluate"]
    assert completions(script, "tql fit --model.bc") == ["--model.bc_coefficient"]
    assert "--model.critic.hidden_dim" in completions(script, "tql fit --model.critic.h")
    assert completions(script, "tql fit --config size/2") == ["size/26m"]
    assert completions(script, "tql data insp") == ["inspect"]
    assert completions(script, "tql data inspect --plo") == ["--plot"]


def test_a_run_leaves_configuration_metrics_and_checkpoint(run_folder: Path) -> None:
    files = {str(path.relative_to(run_folder / "run")) for path in (run_folder / "run").rglob("*") if path.is_file()}
    assert {"config.yaml", "environment.json", "metrics.csv", "checkpoints/last.ckpt"} <= files
    (start,) = read_starts(run_folder / "run")
    assert start["command"] == shlex.join(["tql", "fit", *PENDULUM])
    assert start["packages"]["torch"] == importlib.metadata.version("torch")
    assert any(name.startswith("tensorboard/events") for name in files)


def test_evaluate_prints_a_table_of_several_checkpoints_and_writes_the_same_as_json(run_folder: Path) -> None:
    checkpoint = "run/checkpoints/last.ckpt"
    arguments = ["--episodes", "2", "--json", "figures.json", "--video", "videos", "--video_episodes", "1"]
    finished = call_tql(run_folder, "evaluate", checkpoint, f"./{checkpoint}", *arguments)
    assert finished.returncode == 0, finished.stderr
    figures, same = json.loads((run_folder / "figures.json").read_text())
    assert {**figures, "checkpoint": ""} == {**same, "checkpoint": ""}
    assert (figures["env_id"], figures["updates"], figures["episodes"]) == ("Pendulum-v1", 20, 2)
    assert figures["return"] == pytest.approx(sum(figures["returns"]) / 2)
    assert figures["lengths"] == [200.0, 200.0]
    assert finished.stdout.count(f"[{figures['return_low']:.3f}, {figures['return_high']:.3f}]") == 2
    assert figures["videos"] == ["videos/run_last_episode_0.mp4"]
    assert (run_folder / figures["videos"][0]).stat().st_size > 1000


def test_a_checkpoint_that_is_not_there_is_told_of_before_any_other_is_played(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.ckpt: no such file"):
        evaluate([str(run_folder / "run" / "checkpoints" / "last.ckpt"), "nothing.ckpt"], episodes=1)
    assert capsys.readouterr().out == ""


def test_validate_measures_held_out_losses_and_keeps_the_runs_files(restored_run_folder: Path) -> None:
    run_folder = restored_run_folder
    configuration = (run_folder / "run" / "config.yaml").read_text()
    before = (run_folder / "run" / "metrics.csv").read_text().splitlines()
    settings = ["--config", "run/config.yaml", "--model.discount=0.5"]
    finished = call_tql(run_folder, "validate", *settings, "--ckpt_path=last")
    assert finished.returncode == 0, finished.stderr
    assert "val/td_loss" in finished.stdout
    assert (run_folder / "run" / "config.yaml").read_text() == configuration
    assert len((run_folder / "run" / "metrics.csv").read_text().splitlines()) > len(before)


def test_a_run_is_not_overwritten_but_continued_with_the_settings_given(restored_run_folder: Path) -> None:
    run_folder = restored_run_folder
    metrics = run_folder / "run" / "metrics.csv"
    refused = call_tql(run_folder, "fit", *PENDULUM)
    assert refused.returncode == 2
    assert "--ckpt_path=last" in refused.stderr
    continued = call_tql(run_folder, "fit", *PENDULUM, "--ckpt_path=last", "--trainer.max_steps=40", "--model.tau=0.5")
    assert continued.returncode == 0, continued.stderr
    checkpoint = torch.load(run_folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 40
    assert checkpoint["hyper_parameters"]["tau"] == 0.5
    header, *rows = metrics.read_text().splitlines()
    step = header.split(",").index("step")
    assert {10, 20, 30, 40} <= {int(row.split(",")[step]) for row in rows}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_a_checkpoint_that_a_new_run_continues(
    number: signal.Signals, code: int, run_folder: Path
) -> None:
    folder = f"stopped_{code}"
    arguments = [*PENDULUM, f"--trainer.default_root_dir={folder}"]
    checkpoint = run_folder / folder / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(
        [TQL_COMMAND, "fit", *arguments, "--trainer.max_steps=1000000"],
        cwd=run_folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not checkpoint.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert f"Stopped by {number.name}" in errors.splitlines()[-1]
    updates = torch.load(checkpoint, weights_only=True)["global_step"]
    assert str(updates) in errors.splitlines()[-1]

    continued = call_tql(run_folder, "fit", *arguments, "--ckpt_path=last", f"--trainer.max_steps={updates + 5}")
    assert continued.returncode == 0, continued.stderr
    assert torch.load(checkpoint, weights_only=True)["global_step"] == updates + 5
    with (run_folder / folder / "metrics.csv").open(newline="") as file:
        logged = [int(row["step"]) for row in csv.DictReader(file) if row["train/td_loss"]]
    assert logged == list(range(10, updates + 6, 10))


class SignalBeforeTraining(Callback):
    """Sends this process a signal when there is nothing to save yet."""

    def __init__(self, number: int, moment: str) -> None:
        def strike(*_: Any) -> None:
            os.kill(os.getpid(), number)

        setattr(self, moment, strike)


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Ctrl-C is heard, as it is not by a job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("moment", ["on_sanity_check_start", "on_train_start"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_update_is_no_success(
    number: signal.Signals, code: int, moment: str, command_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    striking = ["--trainer.callbacks+=tests.cli.test_cli.SignalBeforeTraining", f"--trainer.callbacks.number={number}"]
    striking += [f"--trainer.callbacks.moment={moment}", "--data.dataset=tests.toy.toy_dataset"]
    try:
        found = main(["fit", "--config", "tiny.yaml", *striking, "--trainer.num_sanity_val_steps=2"])
    except SystemExit as ended:
        found = int(ended.code or 0)
    assert found == code
    assert not (command_folder / "run" / "checkpoints").exists()
    if moment == "on_train_start":
        stopped = f"Stopped by {number.name} after update 0: nothing to save; begin anew with --ckpt_path=last"
        assert capsys.readouterr().err.splitlines()[-1] == stopped


def test_the_module_runs_as_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tql_lightning", "collect", "--help"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("usage: tql collect")


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_last_checkpoint_that_is_not_there_is_refused(command: str, run_folder: Path) -> None:
    arguments = ["--ckpt_path=last", "--trainer.default_root_dir=nothing_here"]
    refused = call_tql(run_folder, command, *PENDULUM, *arguments)
    assert refused.returncode == 2
    assert "ckpt_path: there is no last checkpoint" in refused.stderr
    assert not (run_folder / "nothing_here" / "config.yaml").exists()


def test_another_environment_than_the_checkpoints_is_refused_by_its_sizes(run_folder: Path) -> None:
    checkpoint = "run/checkpoints/last.ckpt"
    refused = call_tql(run_folder, "evaluate", checkpoint, "--env", "MountainCarContinuous-v0", "--episodes", "1")
    assert refused.returncode == 2
    assert "MountainCarContinuous-v0: expected sizes" in refused.stderr


def test_a_place_that_cannot_be_written_to_is_refused_before_collecting(run_folder: Path) -> None:
    refused = call_tql(run_folder, "collect", "Pendulum-v1", "--output", "/proc/nowhere/x.npz")
    assert refused.returncode == 2
    assert "/proc/nowhere/x.npz: its folder cannot be written to" in refused.stderr
    assert "rows" not in refused.stderr


@pytest.mark.slow
def test_variants_train_by_configuration_and_their_checkpoint_loads(run_folder: Path) -> None:
    variants = [f"--config=variant/{name}" for name in ("modern", "sigma_reparam", "hl_gauss", "single_temperature")]
    fit = call_tql(run_folder, "fit", *PENDULUM, *variants, "--trainer.default_root_dir=variants")
    assert fit.returncode == 0, fit.stderr
    model, _ = load_checkpoint(run_folder / "variants" / "checkpoints" / "last.ckpt")
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds >= {"SandwichBlock", "SwiGLU", "RMSNorm", "SigmaReparam", "HLGauss", "SingleTemperature"}
    assert isinstance(model.value_loss, HLGauss)
    problem = model.hparams["problem"]
    low, high = problem["reward_range"]  # of Pendulum, which never terminates
    assert problem["final_reward_range"] is None
    assert low < -5.0 < -1.0 < high <= 0.0
    assert (model.value_loss.low, model.value_loss.high) == pytest.approx((100.0 * low, 100.0 * high))
