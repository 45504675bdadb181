"""What forged files are made of, and what is watched while they are read."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ALLOWED = 1 << 30  # bytes of address space that refusing a file may take


class Exploit:
    """Makes a file called "executed" in the working folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('executed', 'w').close()",)


def specification(entry_point: str, env_id: str = "Forged-v0", **settings: Any) -> str:
    """The JSON of an environment's specification, as Gymnasium writes it."""
    text = {"id": env_id, "entry_point": entry_point, "reward_threshold": None, "nondeterministic": False}
    text |= {"max_episode_steps": 9, "order_enforce": True, "disable_env_checker": False, "kwargs": {}}
    return json.dumps(text | {"additional_wrappers": [], "vector_entry_point": None} | settings)


RUNS_A_COMMAND = specification("os:system", kwargs={"command": "touch executed"})
WRAPPER = {"name": "Forged", "entry_point": "os:system", "kwargs": {"command": "touch executed"}}
WRAPS_WITH_A_COMMAND = specification("x:y", "Pendulum-v1", kwargs={"g": 9.0}, additional_wrappers=[WRAPPER])
NESTED = "[" * 100_000
BOMB_BYTES = 80 << 20


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Limits memory, and fails where something was executed, imported or written while a file was read in a folder."""
    before = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + ALLOWED, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert {path for path in folder.rglob("*") if "__pycache__" not in path.parts} == before
    assert not {"antigravity", "this"} & sys.modules.keys()
