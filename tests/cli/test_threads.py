"""Threads on a processor: `tql` has them wait without spinning, and takes no more than its cores."""

from __future__ import annotations

import os
import subprocess
import sys

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


def test_there_is_a_thread_for_each_core_that_the_process_may_use_and_it_waits_passively() -> None:
    one_core = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    threads, settings = loaded(one_core + SHOW)
    assert threads == "1\n"
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in settings


def test_environment_variables_decide_on_both() -> None:
    threads, settings = loaded(SHOW, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="active")
    assert threads == "1\n"
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in settings
