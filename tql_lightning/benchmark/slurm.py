"""Has SLURM run a benchmark: one array job, a run for each element, which requeues itself when its time is over."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tql_lightning.benchmark.plan import PlannedRun
from tql_lightning.benchmark.worker import Job
from tql_lightning.system.files import write_text_whole
from tql_lightning.trust.bounded import read_json, read_text

FOLDER = "slurm"  # in the benchmark's: script, runs of the array, what its elements print
RUNS_FILE, SCRIPT_FILE, JOB_FILE = "runs.json", "job.sh", "job_id"
SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
{options}
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={folder}/%a.log

cd {directory}
{python} -m tql_lightning.benchmark.array_task {folder} "$SLURM_ARRAY_TASK_ID" &
worker=$!
trap 'kill -USR1 "$worker"' USR1  # the batch shell alone gets the signal, and "wait" returns when it comes
while true; do
  wait "$worker"
  code=$?
  kill -0 "$worker" 2> /dev/null || break
done
if [ "$code" = 138 ]; then  # 128 + SIGUSR1: saved, not finished
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
"""


def require_slurm(gpus: float) -> None:
    """Checks that jobs can be submitted here.

    Raises:
        ValueError: SLURM is not there, or a run is to have a part of a GPU.
    """
    if shutil.which("sbatch") is None:
        raise ValueError("engine: slurm needs sbatch, which is not there; run the command where jobs are submitted")
    if gpus != int(gpus):
        raise ValueError(f"gpus: expected a whole number, as SLURM gives whole GPUs, found {gpus:g}; use --engine ray")


def submit(runs: Sequence[PlannedRun], job: Job, gpus: float, options: Mapping[str, str]) -> str:
    """Writes the array job for runs and submits it; returns the job's number.

    Args:
        runs: Runs that have not finished.
        job: What they share.
        gpus: GPUs of a run.
        options: Options of sbatch, such as ``time``; they override the script's.

    Raises:
        ValueError: See `require_slurm`; SLURM refuses the job, or an earlier job of the benchmark is in the queue.
    """
    require_slurm(gpus)
    folder = job.output / FOLDER
    queued = job_in_queue(job.output)
    if queued is not None:
        raise ValueError(f"output: job {queued} of {job.output} is in the queue; wait, or end it with scancel {queued}")
    folder.mkdir(exist_ok=True)
    content = {"job": asdict(job) | {"output": str(job.output), "directory": str(job.directory)}}
    write_text_whole(folder / RUNS_FILE, json.dumps(content | {"runs": [asdict(run) for run in runs]}, indent=1) + "\n")
    own = {"cpus-per-task": str(max(1, int(job.cpus)))} | ({"gpus-per-task": str(int(gpus))} if gpus else {})
    text = SCRIPT.format(
        name=f"tql-{job.output.name}",
        last=len(runs) - 1,
        options="\n".join(f"#SBATCH --{key}={value}" for key, value in (own | dict(options)).items()),
        folder=shlex.quote(str(folder)),
        directory=shlex.quote(str(job.directory)),
        python=shlex.quote(sys.executable),
    )
    write_text_whole(folder / SCRIPT_FILE, text)
    ran = subprocess.run(
        ["sbatch", "--parsable", str(folder / SCRIPT_FILE)], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise ValueError(f"engine: sbatch refused {folder / SCRIPT_FILE}: {ran.stderr.strip()}; change --slurm")
    number = ran.stdout.strip().partition(";")[0]
    write_text_whole(folder / JOB_FILE, number + "\n")
    return number


def job_in_queue(output: Path) -> str | None:
    """Number of the benchmark's job, if SLURM has it in its queue."""
    file = output / FOLDER / JOB_FILE
    if not file.is_file():
        return None
    number = read_text(file).strip()
    ran = subprocess.run(["squeue", "--noheader", f"--jobs={number}"], capture_output=True, text=True, check=False)
    return number if ran.returncode == 0 and ran.stdout.strip() else None


def read_array(folder: Path, index: int) -> tuple[PlannedRun, Job]:
    """The run of an element of the array, and what all of them share."""
    content = read_json(folder / RUNS_FILE)
    shared = content["job"] | {name: Path(content["job"][name]) for name in ("output", "directory")}
    return PlannedRun(**content["runs"][index]), Job(**shared)
