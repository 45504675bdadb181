"""The page on one's own algorithm holds: its files run from the command line and keep the contract."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import PATIENCE, call_tql, run_tql
from tql_lightning import Policy
from tql_lightning.run.metrics_csv import read_metrics

PAGE = (Path(__file__).parents[1] / "docs" / "own_algorithm.md").read_text()
FILES = {text.split()[1]: text for text in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)}
(CONSOLE,) = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = [shlex.split(line.removeprefix("$ tql ")) for line in CONSOLE.splitlines()]
QUICK = [
    *("--config", "smoke", "--data.dataset=tests.toy.toy_dataset", "--data.dataset.env_id=Pendulum-v1"),
    "--data.batch_size=16",
]
KINDS = {"mine_iql.IQL": "train/value_loss", "mine_tql.MyTQL": "train/penalty"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with the page's files."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_an_algorithm_takes_less_than_a_hundred_lines() -> None:
    lines = {name: len(text.splitlines()) for name, text in FILES.items()}
    assert lines.keys() == {"mine_tql.py", "mine_iql.py", "test_mine.py"}
    assert max(lines.values()) < 100


@pytest.mark.filterwarnings("ignore:.*left out model.* settings of TQL that IQL does not have")
@pytest.mark.slow  # in little: cli/test_model.py
@pytest.mark.parametrize("kind", KINDS)
def test_every_command_of_the_page_runs(kind: str, folder: Path) -> None:
    printed = []
    for number, command in enumerate(COMMANDS):
        arguments = [part.replace("mine_iql.IQL", kind) for part in command]
        if "--config" in arguments:
            updates = ["--trainer.max_steps=20"] if "--ckpt_path=last" not in arguments else ["--trainer.max_steps=30"]
            arguments = [*(part for part in arguments if "max_steps" not in part), *QUICK, *updates]
        run = run_tql if "--help=model" in arguments else call_tql  # help ends the process
        finished = run(folder, *arguments)
        assert finished.returncode == 0, f"command {number + 1}: {finished.stderr}"
        printed.append(finished.stdout)
    own = {"mine_iql.IQL": "--model.expectile", "mine_tql.MyTQL": "--model.penalty_weight"}
    assert own[kind] in printed[0]
    assert "--model.optimisation.learning_rate" in printed[0]
    assert re.search(r"after 30 updates: Pendulum-v1, 10 episodes", printed[3])
    metrics = read_metrics(folder / "runs" / "iql" / "metrics.csv")
    assert metrics[KINDS[kind]][0] == [10, 20, 30]
    assert (folder / "iql.html").read_text().count("Pendulum-v1") > 0
    policy = Policy.load(folder / "iql")
    action = policy.act(np.zeros(3, dtype=np.float32))
    assert action.shape == (1,)
    assert json.loads((folder / "iql" / "metadata.json").read_text())["updates"] == 30


def run_pytest(folder: Path, *arguments: str) -> str:
    """What pytest prints in a user's folder, where every test has to pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(folder), *arguments]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-2000:]
    return finished.stdout


@pytest.mark.slow
def test_pytest_finds_the_contract_and_a_new_algorithm_beats_cloning(folder: Path) -> None:
    assert "20 tests collected" in run_pytest(folder, "--collect-only")
    assert "3 passed" in run_pytest(folder, "-k", "TestIQL and (moves or inputs or beats)")


@pytest.mark.slow
def test_the_files_keep_the_contract(folder: Path) -> None:
    assert "20 passed" in run_pytest(folder)
