"""The array job, with stand-ins for sbatch, squeue and scontrol that start and stop its elements as SLURM does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.benchmark.tiny import write_suite
from tests.command_line import PATIENCE, call_tql, run_tql
from tql_lightning.benchmark.plan import Choice, PlannedRun, plan_runs, read_plan
from tql_lightning.benchmark.slurm import FOLDER, read_array, submit
from tql_lightning.benchmark.suite import make_suite
from tql_lightning.benchmark.worker import Job, make_job, outcome_of
from tql_lightning.cli.configs import packaged_configs

RAW = {"metric": "return", "domains": {"pendulum": {"config": "quickstart"}}, "methods": {"tql": None}}
SBATCH = """#!/bin/bash
cp "$2" submitted.sh
echo '4242;cluster'
"""
SQUEUE = """#!/bin/bash
if [ -e queue ]; then cat queue; fi
"""
SCONTROL = """#!/bin/bash
echo "$@" >> requeued
"""


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, now the working folder, whose stand-ins are first on the path."""
    for name, script in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scontrol", SCONTROL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def planned(scheduler: Path) -> tuple[list[PlannedRun], Job]:
    (scheduler / "out").mkdir()
    runs = plan_runs(make_suite("mine", RAW), Choice(), packaged_configs())
    return runs, make_job(scheduler / "out", "return", cpus=2.0)


def test_the_job_has_an_element_for_each_run_and_the_users_options(
    scheduler: Path, planned: tuple[list[PlannedRun], Job]
) -> None:
    runs, job = planned
    assert submit(runs, job, gpus=1.0, options={"time": "01:00:00", "partition": "gpu"}) == "4242"
    script = (scheduler / "submitted.sh").read_text()
    for option in ("array=0-2", "cpus-per-task=2", "gpus-per-task=1", "time=01:00:00", "partition=gpu", "requeue"):
        assert f"#SBATCH --{option}\n" in script
    assert f"cd {scheduler}\n" in script
    subprocess.run(["bash", "-n", "submitted.sh"], check=True)
    assert [read_array(scheduler / "out" / FOLDER, index) for index in range(3)] == [(run, job) for run in runs]


def test_a_benchmark_in_the_queue_is_not_submitted_again(
    scheduler: Path, planned: tuple[list[PlannedRun], Job]
) -> None:
    submit(*planned, gpus=0.0, options={})
    (scheduler / "queue").write_text("4242_[0-2] gpu tql-out PENDING\n")
    with pytest.raises(ValueError, match=r"job 4242 of .*out is in the queue; wait, or end it with scancel 4242"):
        submit(*planned, gpus=0.0, options={})
    (scheduler / "queue").unlink()
    submit(*planned, gpus=0.0, options={})


def test_parts_of_gpus_a_missing_scheduler_and_a_refusal_are_told(
    scheduler: Path, planned: tuple[list[PlannedRun], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"gpus: expected a whole number, .* found 0\.5; use --engine ray"):
        submit(*planned, gpus=0.5, options={})
    (scheduler / "bin" / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2\nexit 1\n")
    with pytest.raises(ValueError, match=r"sbatch refused .*job\.sh: invalid partition; change --slurm"):
        submit(*planned, gpus=0.0, options={})
    monkeypatch.setenv("PATH", str(scheduler))
    with pytest.raises(ValueError, match="engine: slurm needs sbatch, which is not there"):
        submit(*planned, gpus=0.0, options={})


def start_element() -> subprocess.Popen[bytes]:
    """Starts the array's only element as SLURM does; the batch shell alone hears signals."""
    numbers = {"SLURM_ARRAY_JOB_ID": "4242", "SLURM_ARRAY_TASK_ID": "0"}
    return subprocess.Popen(["bash", "submitted.sh"], env=os.environ | numbers)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_an_element_saves_at_the_signal_requeues_itself_and_finishes_its_run(scheduler: Path) -> None:
    write_suite(scheduler, updates=900, every_n_updates=10)
    command = ("benchmark", "suite.yaml", "--engine", "slurm", "--methods", "tql", "--seeds", "0", "--output", "out")
    submitted = run_tql(scheduler, *command)
    assert submitted.returncode == 0, submitted.stderr
    assert "job 4242: 1 runs submitted" in submitted.stdout
    (run,) = read_plan(scheduler / "out")[1]
    element = start_element()
    while not (scheduler / "out" / run.folder / "checkpoints" / "last.ckpt").is_file():
        assert element.poll() is None
        time.sleep(0.1)
    element.send_signal(signal.SIGUSR1)
    assert element.wait(PATIENCE) == 128 + signal.SIGUSR1
    assert (scheduler / "requeued").read_text() == "requeue 4242_0\n"
    assert outcome_of(run, scheduler / "out") is None

    assert start_element().wait(PATIENCE) == 0
    outcome = outcome_of(run, scheduler / "out")
    assert outcome is not None
    assert outcome.state == "finished"
    assert "Restoring states from the checkpoint" in (scheduler / "out" / run.folder / "train.log").read_text()


def test_a_missing_scheduler_is_told_before_anything_is_checked_or_written(
    scheduler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(scheduler))
    refused = call_tql(scheduler, "benchmark", "quickstart", "--engine", "slurm", "--output", "new")
    assert (refused.returncode, "engine: slurm needs sbatch" in refused.stderr) == (2, True)
    assert not (scheduler / "new").exists()
