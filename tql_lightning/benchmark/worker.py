"""Trains one run of a benchmark in a process of its own, from where it was left, and records how that ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from tql_lightning.benchmark.plan import PlannedRun
from tql_lightning.run.folder import CONFIG_FILE, LOG_FILE, METRICS_FILE, OUTCOME_FILE
from tql_lightning.run.links import refuse_links
from tql_lightning.run.lock import wait_until_free
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.system.child_processes import STARTER_VARIABLE
from tql_lightning.system.files import write_text_whole
from tql_lightning.trust.bounded import read_json

State = Literal["finished", "failed", "stopped"]
LONGEST_MESSAGE = 1500  # characters of the end of a failed run's log
POLL_SECONDS = 0.5
PASSED_ON = ("TQL_", "OGBENCH_", "D4RL_", "MINARI_", "MUJOCO_", "OMP_", "PYTHONPATH")  # beginnings of variables
LOCK_SECONDS = 60.0  # in which a killed run's process ends


class Outcome(NamedTuple):
    """How a run ended: finished, failed with a message, or stopped by a signal."""

    state: State
    message: str = ""


def outcome_of(run: PlannedRun, output: Path) -> Outcome | None:
    """The recorded outcome of a run with these very arguments; None where there is none."""
    try:
        record = read_json(output / run.folder / OUTCOME_FILE)
        same = record["arguments"] == list(run.arguments)
        return Outcome(record["state"], str(record["message"])[: 2 * LONGEST_MESSAGE]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Job:
    """What every run of a benchmark needs to know, on whatever machine it runs.

    Attributes:
        output: Folder of the benchmark, as an absolute path.
        metric: Figure that a run's evaluations must have.
        cpus: Cores of a run; a thread of OpenMP for each, unless OMP_NUM_THREADS is set.
        directory: Working folder, to which paths in configurations are relative.
        environment: Variables of the command that started the benchmark.
    """

    output: Path
    metric: str
    cpus: float
    directory: Path
    environment: Mapping[str, str]


def make_job(output: Path, metric: str, cpus: float) -> Job:
    """The job of a benchmark that is started in this process's folder and environment."""
    own = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    return Job(output.absolute(), metric, cpus, Path.cwd(), own)


def execute(run: PlannedRun, job: Job, while_waiting: Callable[[], object] | None = None) -> Outcome:
    """Trains a run to its end unless it is finished, and records the outcome in its folder.

    Ctrl-C and SIGTERM stop the run, which then saves a checkpoint. Where this process is killed, the run stops, too.

    Args:
        run: The run.
        job: What all runs of the benchmark share.
        while_waiting: Called twice a second while the run trains.
    """
    found = outcome_of(run, job.output)
    if found is not None and found.state == "finished":
        return found
    folder = job.output / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    wait_until_free(folder, LOCK_SECONDS)
    start = time.monotonic()
    outcome = _judge(_train(run, job, while_waiting), folder, job.metric)
    record(run, job.output, outcome, time.monotonic() - start)
    return outcome


def record(run: PlannedRun, output: Path, outcome: Outcome, seconds: float = 0.0) -> None:
    """Writes how a run ended, and how long its last start took, into its folder."""
    content = {"state": outcome.state, "message": outcome.message, "seconds": round(seconds, 1)}
    content["arguments"] = list(run.arguments)
    write_text_whole(output / run.folder / OUTCOME_FILE, json.dumps(content, indent=1) + "\n")


def _train(run: PlannedRun, job: Job, while_waiting: Callable[[], object] | None) -> int:
    folder = job.output / run.folder
    command = [sys.executable, "-m", "tql_lightning", *run.command(job.output)]
    if (folder / CONFIG_FILE).is_file():
        command.append("--ckpt_path=last")
    threads = {"OMP_NUM_THREADS": str(max(1, int(job.cpus)))}
    own = {"PYTHONUNBUFFERED": "1", STARTER_VARIABLE: str(os.getpid())}
    with (folder / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=job.directory,
            env={**threads, **os.environ, **job.environment, **own},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches this process alone, which passes it on
        )
    try:
        while True:
            try:
                return process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if while_waiting is not None:
                    while_waiting()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _judge(code: int, folder: Path, metric: str) -> Outcome:
    log = (folder / LOG_FILE).read_text(errors="replace").replace("\r", "\n")
    end = "\n".join(line for line in log.splitlines() if line.strip())[-LONGEST_MESSAGE:]
    number = -code if code < 0 else code - 128
    if number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        return Outcome("stopped", f"stopped by {signal.Signals(number).name}")
    if code < 0:
        hint = ", as the system does when memory runs out" if number == signal.SIGKILL else ""
        return Outcome("failed", f"killed by {signal.Signals(number).name}{hint}; end of {LOG_FILE}:\n{end}")
    if code:
        return Outcome("failed", end)
    return _judge_evaluations(folder, metric, end)


def _judge_evaluations(folder: Path, metric: str, end: str) -> Outcome:
    """A run that trained to its end has failed nevertheless where its last evaluation has no figure."""
    series = read_metrics(folder / METRICS_FILE)
    updates, failures = series.get("eval/failures", ([], []))
    scored, _ = series.get(f"eval/{metric}", ([], []))
    if not scored or (updates and updates[-1] > scored[-1]):
        what = f"{failures[-1]:.0f} evaluations failed" if failures else "no evaluation"
        return Outcome("failed", f"no eval/{metric} at the last update ({what}); end of {LOG_FILE}:\n{end}")
    return Outcome("finished")
