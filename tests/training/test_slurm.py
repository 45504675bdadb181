"""The job script of docs/scaling.md, run by a stand-in for SLURM that sets what srun sets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.command_line import PATIENCE, TINY, TQL_COMMAND
from tql_lightning.run.checkpoint_io import read_checkpoint

ROOT = Path(__file__).parents[2]
RUN = Path("runs/cube-double-26m/seed_0")
ALLOCATION = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "tql"}
SRUN = """#!/bin/bash
export SLURM_NTASKS=2 SLURM_NODELIST=127.0.0.1
for task in 0 1; do
  SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 "$@" &
  echo $! >> tasks
done
highest=0
for process in $(jobs -p); do
  wait "$process"
  code=$?
  if [ "$code" -gt "$highest" ]; then highest=$code; fi
done
exit "$highest"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> requeued
"""


def start(folder: Path, updates: int) -> subprocess.Popen[bytes]:
    """Starts the script of the documentation, on a small problem, in a folder of its own."""
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs" / "scaling.md").read_text(), re.DOTALL)
    theirs = "--config ogbench/cube-double --config size/26m"
    assert theirs in script
    ours = f"--config tiny.yaml --data.dataset=tests.toy.toy_dataset --trainer.max_steps={updates}"
    folder.mkdir(exist_ok=True)
    (folder / "job.sh").write_text(script.replace(theirs, ours))
    (folder / "tiny.yaml").write_text(TINY)
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(TQL_COMMAND).parent), os.environ["PATH"]])
    environment = os.environ | ALLOCATION | {"PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(["bash", "job.sh"], cwd=folder, env=environment)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_job_script_saves_at_the_signal_requeues_itself_and_goes_on_exactly(tmp_path: Path) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    job = start(stopped, updates=1_000_000)
    while not (stopped / RUN / "checkpoints" / "last.ckpt").exists():  # both train, and hear signals
        assert job.poll() is None
        time.sleep(0.1)
    for task in (stopped / "tasks").read_text().split():
        os.kill(int(task), signal.SIGUSR1)
    assert job.wait(timeout=PATIENCE) == 128 + signal.SIGUSR1
    assert (stopped / "requeued").read_text() == "requeue 4242\n"
    updates = read_checkpoint(stopped / RUN / "checkpoints" / "last.ckpt")["global_step"] + 20

    for folder in (stopped, whole):
        assert start(folder, updates).wait(timeout=PATIENCE) == 0
    assert (stopped / "requeued").read_text() == "requeue 4242\n"
    found, expected = (
        read_checkpoint(folder / RUN / "checkpoints" / "last.ckpt")["state_dict"] for folder in (stopped, whole)
    )
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
