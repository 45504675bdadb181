"""``python -m tql_lightning.benchmark.array_task FOLDER INDEX``: an element of SLURM's array job trains its run.

Ends with 128 + the number of the signal that stopped it (138 for SIGUSR1), 1 for a failed run, else 0.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from tql_lightning.benchmark.slurm import read_array
from tql_lightning.benchmark.worker import execute


def main(folder: str, index: str) -> int:
    """Trains the run and returns the exit code."""
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        if not received:  # the run is stopping already
            received.append(number)
            raise KeyboardInterrupt

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, stop)
    run, job = read_array(Path(folder), int(index))
    try:
        outcome = execute(run, job)
    except KeyboardInterrupt:
        return 128 + (received[0] if received else signal.SIGINT)
    print(f"{run.folder}: {outcome.state} {outcome.message}")
    return 1 if outcome.state == "failed" else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
