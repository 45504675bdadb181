"""Runs a command line in a process forked from this one, and measures what it took."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tql_lightning.cli.main import main

CPU_LIMIT = 120  # seconds after which the kernel ends the process
WALL_LIMIT = 300  # the same of a process that waits
STRANGERS = ("antigravity", "this", "strangers_part")  # modules that hostile files name


@dataclass(frozen=True)
class Ran:
    """What came of a process.

    Attributes:
        code: exit code; minus the number of the signal that ended it.
        output: what it printed.
        seconds: of the CPU.
        memory: bytes that it held at most.
        imported: modules of strangers.
    """

    code: int
    output: str
    seconds: float
    memory: int
    imported: tuple[str, ...]


def run_forked(folder: Path, arguments: Sequence[str], prepare: Callable[[], None] = lambda: None) -> Ran:
    """Runs ``tql ARGUMENTS`` in a folder.

    Args:
        folder: the working folder; its parent takes what is printed.
        arguments: after ``tql``.
        prepare: called in the process before.
    """
    printed = folder.parent / f"{folder.name}_printed"
    process = os.fork()
    if process == 0:
        code = 70
        try:
            code = _work(folder, printed, arguments, prepare)
        finally:
            os._exit(code)
    _, status, used = os.wait4(process, 0)
    output = printed.read_text(errors="backslashreplace")
    text, _, imported = output.rpartition("\0")
    return Ran(
        os.waitstatus_to_exitcode(status),
        text or output,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss * 1024,
        tuple(imported.split()),
    )


def _work(folder: Path, printed: Path, arguments: Sequence[str], prepare: Callable[[], None]) -> int:
    os.chdir(folder)
    os.environ["HOME"] = str(folder.parent / "home")
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(file), "w", buffering=1) for _ in range(2))
    sys.argv = ["tql"]
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(WALL_LIMIT)
    warnings.simplefilter("default")  # as a user's Python has them, and not to pytest
    warnings.showwarning = lambda *shown, **_: print(warnings.formatwarning(*shown[:4]), file=sys.stderr)
    try:
        prepare()
        code = main(arguments)
    except BaseException:  # a traceback is what no user should see
        traceback.print_exc()
        code = 1
    print("\0", *(name for name in STRANGERS if name in sys.modules))
    sys.stdout.flush()
    return code
