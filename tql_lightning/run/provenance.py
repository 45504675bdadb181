"""Provenance of a run, kept in its folder: commands, package versions and hardware; and peak memory."""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from tql_lightning.run.folder import ENVIRONMENT_FILE
from tql_lightning.system.files import write_text_whole
from tql_lightning.trust.bounded import read_json

PROGRAM = "tql"


def peak_memory_bytes() -> int:
    """Peak resident memory of this process.

    On Linux ``getrusage`` is not used: it also counts the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@cache
def package_versions() -> dict[str, str]:
    """Versions of all installed packages by normalised name."""
    found = {dist.metadata["Name"]: dist.version for dist in distributions() if dist.metadata["Name"]}
    return dict(sorted((name.lower().replace("_", "-"), version) for name, version in found.items()))


def record_start(folder: Path, arguments: Sequence[str], update: int, device: str, processes: int) -> None:
    """Appends a start or continuation of a run to its environment.json.

    Args:
        folder: Folder of the run.
        arguments: Command line after ``tql``.
        update: Number of updates done before.
        device: Name of the training device.
        processes: Number of training processes.
    """
    starts = read_starts(folder) if update > 0 else []
    starts.append(
        {
            "command": shlex.join([PROGRAM, *arguments]),
            "update": update,
            "device": device,
            "processes": processes,
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "packages": package_versions(),
        }
    )
    write_text_whole(folder / ENVIRONMENT_FILE, json.dumps(starts, indent=1) + "\n")


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Starts and continuations of a run, first to last; empty if the record is missing or unreadable."""
    try:
        starts = read_json(folder / ENVIRONMENT_FILE)
    except (OSError, ValueError):
        return []
    return [start for start in starts if _is_start(start)] if isinstance(starts, list) else []


def _is_start(start: object) -> bool:
    return (
        isinstance(start, dict)
        and isinstance(start.get("command"), str)
        and isinstance(start.get("update"), int)
        and isinstance(start.get("packages"), dict)
    )
