"""Threads on a processor: `tql` has them wait without spinning, and takes no more than its cores."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = "import tql_lightning.cli.main, torch; print(torch.get_num_threads())"


def loaded(program: str, **environment: str) -> tuple[str, str]:
    """Output of a program, and what OpenMP prints of its settings when torch loads it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | {"OMP_DISPLAY_ENV": "TRUE"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout, finished.stderr


@pytest.mark.parametrize(
    ("environment", "policy"),
    [({}, "PASSIVE"), pytest.param({"OMP_WAIT_POLICY": "active"}, "ACTIVE", marks=pytest.mark.slow)],
)
def test_openmp_waits_passively_unless_told_otherwise(environment: dict[str, str], policy: str) -> None:
    _, settings = loaded(SHOW, **environment)
    assert f"OMP_WAIT_POLICY = '{policy}'" in settings


def test_there_is_a_thread_for_each_core_that_the_process_may_use() -> None:
    one_core = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    assert loaded(one_core + SHOW)[0] == "1\n"
    assert loaded(SHOW, OMP_NUM_THREADS="1")[0] == "1\n"
