"""How the end of a run is judged, and what the display says of runs, from their files alone."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmark.test_table import RAW, write_run
from tql_lightning.benchmark.plan import Choice, plan_runs
from tql_lightning.benchmark.progress import Progress, duration
from tql_lightning.benchmark.serial import run_serially
from tql_lightning.benchmark.suite import make_suite
from tql_lightning.benchmark.worker import Outcome, _judge, execute, make_job, outcome_of, record
from tql_lightning.cli.configs import packaged_configs
from tql_lightning.trust.output import plain_output

RUNS = plan_runs(make_suite("mine", RAW), Choice(["scene"], ["fql"], seeds=[0, 1, 2]), packaged_configs())


@pytest.mark.parametrize(
    ("code", "state", "message"),
    [
        (0, "finished", ""),
        (1, "failed", "the end"),
        (130, "stopped", "stopped by SIGINT"),
        (143, "stopped", "stopped by SIGTERM"),
        (-signal.SIGTERM, "stopped", "stopped by SIGTERM"),
        (-signal.SIGKILL, "failed", "killed by SIGKILL, as the system does when memory runs out; end of"),
        (-signal.SIGSEGV, "failed", "killed by SIGSEGV; end of"),
    ],
)
def test_an_exit_code_tells_how_a_run_ended(code: int, state: str, message: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [0, 0.5])
    (tmp_path / "run" / "train.log").write_text("a bar\rthe end\n")
    outcome = _judge(code, tmp_path / "run", "success_rate")
    assert outcome.state == state
    assert message in outcome.message


@pytest.mark.parametrize("rows", ["0,0.5,\n400,,2.0\n", "400,,1.0\n"])
def test_a_run_whose_last_evaluation_failed_has_failed(rows: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,eval/success_rate,eval/failures\n{rows}")
    (tmp_path / "train.log").write_text("evaluation at update 400 failed: the simulator is gone\n")
    outcome = _judge(0, tmp_path, "success_rate")
    assert outcome.state == "failed"
    assert "no eval/success_rate at the last update" in outcome.message
    assert "the simulator is gone" in outcome.message


def test_a_failed_runs_message_keeps_its_beginning_and_the_end_of_its_log(tmp_path: Path) -> None:
    folder = tmp_path / RUNS[0].folder
    write_run(folder, [0])
    (folder / "train.log").write_text("x" * 5000 + "the end\n")
    record(RUNS[0], tmp_path, _judge(-signal.SIGKILL, folder, "success_rate"))
    outcome = outcome_of(RUNS[0], tmp_path)
    assert outcome is not None
    assert outcome.message.startswith("killed by SIGKILL, as the system does when memory runs out; end of train.log:")
    assert outcome.message.endswith("xthe end")


def test_a_run_whose_log_cannot_be_written_fails_and_the_next_is_begun(tmp_path: Path) -> None:
    for run in RUNS[:2]:
        (tmp_path / run.folder / "train.log").mkdir(parents=True)
    run_serially(RUNS[:2], make_job(tmp_path, "success_rate", 1.0), Progress(tmp_path, RUNS, "success_rate", {}))
    for run in RUNS[:2]:
        outcome = outcome_of(run, tmp_path)
        assert outcome is not None
        assert (outcome.state, "train.log" in outcome.message) == ("failed", True)


def test_what_a_run_prints_goes_through_no_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    folder = tmp_path / "benchmark" / RUNS[0].folder
    folder.mkdir(parents=True)
    (folder / "train.log").symlink_to(precious)
    with pytest.raises(ValueError, match=r"train\.log: expected a file or folder of the run itself"):
        execute(RUNS[0], make_job(tmp_path / "benchmark", "success_rate", 1.0))
    assert precious.read_text() == "precious"


def test_the_display_moves_up_a_terminal_that_shows_control_sequences_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with plain_output():
        display = Progress(tmp_path, RUNS, "success_rate", {})
        display.show(now=True)
        display.show(now=True)
        print("\x1b[2J", file=sys.stderr)
    shown = "0 of 3 runs finished, 0 training\n"
    assert terminal.getvalue() == f"{shown}\x1b[1A\x1b[J{shown}\\x1b[2J\n"


def test_an_outcome_holds_for_the_same_arguments_alone(tmp_path: Path) -> None:
    record(RUNS[0], tmp_path, Outcome("finished"))
    assert outcome_of(RUNS[0], tmp_path) == Outcome("finished")
    (tmp_path / RUNS[1].folder).mkdir(parents=True)
    (tmp_path / RUNS[0].folder / "outcome.json").rename(tmp_path / RUNS[1].folder / "outcome.json")
    assert outcome_of(RUNS[1], tmp_path) is None  # of another seed
    assert outcome_of(RUNS[2], tmp_path) is None


def test_the_display_shows_speed_time_left_and_last_score_of_what_trains(tmp_path: Path) -> None:
    for run in RUNS[:2]:
        write_run(tmp_path / run.folder, [0, 0.25])
    metrics = tmp_path / RUNS[1].folder / "metrics.csv"
    metrics.write_text("step,eval/success_rate,train/updates_per_second\n100,0.25,\n150,,5.0\n")
    (tmp_path / RUNS[1].folder / "run.lock").touch()
    record(RUNS[0], tmp_path, Outcome("finished"))
    shown = Progress(tmp_path, RUNS, "success_rate", dict.fromkeys((run.folder for run in RUNS), 400)).lines()
    assert shown == [
        "1 of 3 runs finished, 1 training",
        "  scene/task_4/fql/seed_1: 150 of 400 updates, 5 a second, 50 s left, success_rate 0.25",
    ]
    assert [duration(seconds) for seconds in (45, 720, 12_240)] == ["45 s", "12 min", "3.4 h"]


CHILD = """
import time
from tql_lightning.system.child_processes import end_with_starter
end_with_starter()
print("ready", flush=True)
time.sleep(60)
"""
STARTER = """
import os, subprocess, sys, time
environment = os.environ | {"TQL_STARTER": str(os.getpid())}
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=environment, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_run_ends_when_the_process_that_started_it_is_killed() -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, CHILD], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter.stdout as printed:
        assert int(printed.readline()) > 0
        assert printed.readline() == "ready\n"
        starter.kill()
        starter.wait()
        assert printed.read() == "", "the child ends, and so closes the pipe"
