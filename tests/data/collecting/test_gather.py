"""Episodes from several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tql_lightning.data.collecting.gather import gather


def report_threads() -> Callable[[tuple[int, ...]], dict[str, Any]]:
    return lambda key: {"actions": np.array([key[0], int(os.environ.get("OMP_NUM_THREADS", "0"))])[None]}


def test_workers_have_one_thread_each_and_the_caller_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    episodes = gather(report_threads, [(number,) for number in range(7)], workers=2, rows=7)
    assert [episode["actions"][0].tolist() for episode in episodes] == [[number, 1] for number in range(7)]
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


def report_process(marks: Path) -> Callable[[tuple[int, ...]], dict[str, Any]]:
    def episode(_: tuple[int, ...]) -> dict[str, Any]:
        (marks / str(os.getpid())).touch()
        time.sleep(0.05)
        return {"actions": np.zeros((1, 1))}

    return episode


def kill_worker() -> Callable[[tuple[int, ...]], dict[str, Any]]:
    return lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[return-value]


def test_a_killed_worker_is_reported() -> None:
    with pytest.raises(ChildProcessError, match="one of 2 collecting processes ended unasked"):
        gather(kill_worker, [(0,), (1,)], workers=2, rows=2)


def test_workers_do_not_outlive_a_killed_collection(tmp_path: Path) -> None:
    code = (
        "from functools import partial; from itertools import count; from pathlib import Path\n"
        "from tests.data.collecting.test_gather import report_process\n"
        "from tql_lightning.data.collecting.gather import gather\n"
        f"gather(partial(report_process, Path({str(tmp_path)!r})), ((n,) for n in count()), 2, 10**9)"
    )
    root = Path(__file__).parents[3]
    collecting = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: len(list(tmp_path.iterdir())) == 2), "two workers should have started"
    finally:
        collecting.kill()
        collecting.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert eventually(lambda: not any(running(worker) for worker in workers))


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 200.0  # where many wait for few cores; it is over as soon as the condition holds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
