"""What every hostile input is judged by."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.attack.forked import Ran, run_forked

SECONDS, MEMORY, LETTERS = 20.0, 2 << 30, 2000
PRECIOUS = "precious"
CACHES = ("home/.cache/", "home/.config/")  # of libraries
SOURCE = "open('executed', 'w').close()\ndef fly(*_): ...\n"

Attack = tuple[Callable[[Path, Path], object], tuple[str, ...]]  # writes files beside a whole checkpoint; the command


def listed(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder: size and kind of each."""
    found = {}
    for below, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(below, name)
            if "__pycache__" not in path.parts and not name.endswith("_printed"):
                status = path.lstat()
                found[str(path.relative_to(folder))] = (0 if path.is_dir() else status.st_size, status.st_mode)
    return found


def assert_harmless(folder: Path, command: Sequence[str], code: int, within: tuple[str, ...] = ()) -> Ran:
    """Runs a command, which imports nothing of the files, writes only where it may, takes little and says it shortly.

    Args:
        folder: Working folder.
        command: Arguments after ``tql``.
        code: Exit code that is right.
        within: Beginnings of the paths that it may change, in the working folder.
    """
    before = listed(folder.parent)
    ran = run_forked(folder, command)
    after = listed(folder.parent)
    assert ran.code == code, ran.output
    assert ran.imported == ()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    allowed = (*CACHES, *(f"{folder.name}/{each}" for each in within))
    assert sorted(name for name in changed if not f"{name}/".startswith(allowed)) == []
    assert ran.memory < MEMORY
    assert ran.seconds < SECONDS
    assert len(ran.output) < LETTERS
    assert "Traceback" not in ran.output
    assert all(each.isprintable() or each in "\n\r" for each in ran.output)
    return ran
