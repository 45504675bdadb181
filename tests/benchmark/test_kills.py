"""Drivers, workers and nodes of Ray are killed at random moments; the benchmark ends as one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.benchmark.tiny import write_suite
from tests.command_line import TQL_COMMAND, run_tql
from tql_lightning.benchmark.plan import read_plan
from tql_lightning.benchmark.worker import outcome_of
from tql_lightning.run.checkpoint_io import read_checkpoint

KILLS = 10
UPDATES = 600
PATIENCE = 2400.0  # seconds for the whole test, where many programs share few cores
COMMAND = ("benchmark", "suite.yaml", "--methods", "tql", "--output")


def processes(word: str) -> list[int]:
    """Processes whose command line begins with a word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(word.encode()):
                found.append(int(folder.name))
    return found


def changes(output: Path) -> float:
    """Time at which a run last wrote a checkpoint."""
    times = []
    for path in output.glob("*/*/*/checkpoints/last.ckpt"):
        with suppress(OSError):  # being replaced
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two local nodes: a head that runs nothing, and one with two cores, which may be killed."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield nodes
    nodes.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_killed_drivers_workers_and_nodes_lose_and_repeat_nothing(tmp_path: Path, cluster: Any) -> None:
    write_suite(tmp_path, updates=UPDATES, every_n_updates=20)
    killed = kill_again_and_again(tmp_path, cluster)
    assert len(killed) == KILLS, "the runs ended too early to be killed so often"

    whole = run_tql(tmp_path, *COMMAND, "whole", "--engine", "serial")
    assert whole.returncode == 0, whole.stderr
    _, runs = read_plan(tmp_path / "killed")
    for run in runs:
        outcome = outcome_of(run, tmp_path / "killed")
        assert outcome is not None
        assert outcome.state == "finished"
        found, expected = (
            read_checkpoint(tmp_path / name / run.folder / "checkpoints" / "last.ckpt") for name in ("killed", "whole")
        )
        assert found["global_step"] == expected["global_step"] == UPDATES
        different = [
            name for name, value in expected["state_dict"].items() if not torch.equal(found["state_dict"][name], value)
        ]
        assert different == []


def kill_again_and_again(folder: Path, cluster: Any) -> list[str]:
    """Runs the benchmark to its end, while it kills drivers, workers and nodes; returns what it killed."""
    rng, end = np.random.default_rng(0), time.monotonic() + PATIENCE
    node, driver = cluster.add_node(num_cpus=2), None
    finished: dict[str, int] = {}
    killed: list[str] = []
    output, log = folder / "killed", (folder / "driver.log").open("a")
    while True:
        if driver is None or driver.poll() is not None:
            if driver is not None and driver.poll() == 0:
                break
            options = ["--address", cluster.address, "--retries", "20"]
            driver = subprocess.Popen(
                [TQL_COMMAND, *COMMAND, "killed", *options], cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )
        before = changes(output)
        while changes(output) == before and driver.poll() is None:  # until a run has trained on
            assert time.monotonic() < end, (folder / "driver.log").read_text()[-2000:]
            time.sleep(0.1)
        if len(killed) == KILLS or driver.poll() is not None:
            continue
        time.sleep(float(rng.uniform(0.0, 1.0)))
        victim = ("driver", "worker", "node")[len(killed) % 3]
        killed.append(victim)
        if victim == "driver":
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        elif victim == "worker":
            for process in processes("ray::execute")[:1]:
                os.kill(process, signal.SIGKILL)
        else:
            cluster.remove_node(node, allow_graceful=False)
            node = cluster.add_node(num_cpus=2)
        for file in output.glob("*/*/*/outcome.json"):
            if '"finished"' in file.read_text():
                assert finished.setdefault(str(file), file.stat().st_mtime_ns) == file.stat().st_mtime_ns
    log.close()
    return killed
