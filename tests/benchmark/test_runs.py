"""Benchmarks that really run: failed, finished, stopped and continued runs, whatever engine runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmark.tiny import write_suite
from tests.command_line import run_tql
from tql_lightning.benchmark.plan import read_plan
from tql_lightning.benchmark.worker import outcome_of

MESSAGE = "the environment of this run is dead"
FAULTY = f"""
import gymnasium
from tests.toy import toy_dataset
from gymnasium.envs.classic_control.pendulum import PendulumEnv

class Dead(PendulumEnv):
    def reset(self, **settings):
        raise RuntimeError("{MESSAGE}")

gymnasium.register("Dead-v0", entry_point=Dead, max_episode_steps=5)
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_run_that_fails_is_reported_and_the_others_finish_once(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    methods = {
        "good": {},
        "diverging": {"settings": {"model.optimisation.learning_rate": 1e30, "model.optimisation.warmup_updates": 0}},
        "dead": {"settings": {"data.dataset.env_id": "faulty:Dead-v0"}},
    }
    write_suite(tmp_path, methods=methods, seeds=[0])
    command = ("benchmark", "suite.yaml", "--engine", "serial", "--output", "out")
    ran = run_tql(tmp_path, *command)
    assert ran.returncode == 1, ran.stderr
    _, runs = read_plan(tmp_path / "out")
    outcomes = {run.method: outcome_of(run, tmp_path / "out") for run in runs}
    assert {method: outcome.state for method, outcome in outcomes.items() if outcome} == {
        "good": "finished",
        "diverging": "failed",
        "dead": "failed",
    }
    assert "diverged" in ran.stderr
    assert MESSAGE in ran.stderr
    assert "1 of 3 runs finished" in ran.stdout
    assert "| return | good |" in ran.stdout
    assert "Unfinished, and in no score: toy/diverging/seed_0 (failed); toy/dead/seed_0 (failed)." in ran.stdout

    finished = tmp_path / "out" / runs[0].folder / "outcome.json"
    before = finished.stat().st_mtime_ns, json.loads(finished.read_text())
    assert run_tql(tmp_path, *command).returncode == 1
    assert (finished.stat().st_mtime_ns, json.loads(finished.read_text())) == before
