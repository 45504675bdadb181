"""Tries every reader with files that hypothesis makes, for some minutes: ``python -m tests.fuzz MINUTES [READER ...]``.

Each round is a process of its own, with limits on memory and on the seconds of a file. What makes a reader raise an
error that is none of its own, crash, hang or fill the memory is kept in runs/fuzz/.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

KEPT = Path("runs/fuzz")
EXAMPLES = 2_000  # a round
ROUND_SECONDS = 20.0  # after its start, which takes some more
FILE_SECONDS = 10
MEMORY = 3 << 30  # bytes beyond what the process has when it begins
GROWTH = 1 << 30  # bytes that reading a file of some kilobytes may take


def run_round(name: str, seed: int, folder: Path, seconds: float) -> None:
    """Reads one file after another, until the time is up; raises what no reader should."""
    import hypothesis
    from hypothesis import HealthCheck, Phase, given

    from tests.fuzz.readers import attempt, readers

    reader, counted = readers()[name], [0]
    attempt(reader, folder, reader.whole(), pass_over=False)  # imports what it needs
    end = time.monotonic() + seconds
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY, pages + MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, also within a library

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.files)
    def everything(content: bytes) -> None:
        if time.monotonic() > end:
            return
        (folder / "current").write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.alarm(FILE_SECONDS)
        attempt(reader, folder, content)
        signal.alarm(0)
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if grown > GROWTH:
            raise MemoryError(f"{grown:,} bytes for a file of {len(content):,}")
        counted[0] += 1

    try:
        everything()
    finally:
        print(counted[0])


def main(arguments: Sequence[str]) -> int:
    """Spends the minutes on all readers, or on those that are named; 1 if something was found."""
    from tests.fuzz.readers import readers

    names, end = list(arguments[1:]) or list(readers()), time.monotonic() + 60.0 * float(arguments[0])
    counts, found, seed = dict.fromkeys(names, 0), 0, int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}", flush=True)
    while time.monotonic() < end:
        for name in names:
            seed += 1
            seconds = max(1.0, min(ROUND_SECONDS, (end - time.monotonic()) / len(names)))
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "tests.fuzz", "round", name, str(seed), folder, str(seconds)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                counts[name] += int((done.stdout.split() or ["0"])[-1])
                if done.returncode:
                    found += 1
                    KEPT.mkdir(parents=True, exist_ok=True)
                    if Path(folder, "current").exists():  # not where an empty file was enough
                        shutil.copy(Path(folder, "current"), KEPT / f"{name}_{seed}")
                    ended = [line[:200] for line in done.stderr.strip().splitlines()[-14:]]
                    print(f"{name}: exit code {done.returncode}, kept {KEPT / f'{name}_{seed}'}", *ended, sep="\n  ")
                    sys.stdout.flush()
    print(*(f"{name}: {count:,} files" for name, count in counts.items()), f"found: {found}", sep="\n")
    return int(found > 0)


if __name__ == "__main__":
    if sys.argv[1] == "round":
        run_round(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), float(sys.argv[5]))
    else:
        sys.exit(main(sys.argv[1:]))
