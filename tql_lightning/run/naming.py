"""Names of the folders of runs: everything that varies between runs is in the path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

LONGEST = 120  # characters of one folder's name
_UNSAFE = re.compile(r"[^\w.,=+${}-]+")


def run_folder(output: str, problem: str, task: str | None, method: str, seed: str) -> str:
    """Path of a run's folder: ``OUTPUT/PROBLEM[/task_TASK]/METHOD/seed_SEED``.

    Args:
        output: Folder of all runs.
        problem: Environment or dataset, such as "cube-double".
        task: Number of the task where a problem has several.
        method: Method with its size, variant and settings; see `method_name`.
        seed: Seed of the run.
    """
    parts = [safe_name(problem), *([] if task is None else [f"task_{task}"]), safe_name(method), f"seed_{seed}"]
    return "/".join([output, *parts])


def method_name(names: Iterable[str], settings: Mapping[str, object] | Sequence[tuple[str, str]] = ()) -> str:
    """Name of a method: "tql-26m-qk_norm,discount=0.995".

    Args:
        names: Method, size, variant and further configurations, in this order.
        settings: Changed settings by key; a leading "model." is left out.
    """
    pairs = settings.items() if isinstance(settings, Mapping) else settings
    changed = [f"{key.removeprefix('model.')}={value}" for key, value in pairs]
    return ",".join(["-".join(names), *changed])


def safe_name(text: str) -> str:
    """The text as a folder's name; a digest keeps texts apart whose names would be the same."""
    name = _UNSAFE.sub("_", text)
    if name == text and len(name) <= LONGEST and name not in (".", ".."):
        return name
    return f"{name[: LONGEST - 9]}-{sha256(text.encode()).hexdigest()[:8]}"
