"""Runs one run of a benchmark after the other in this machine, without any scheduler."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from tql_lightning.benchmark.plan import PlannedRun
from tql_lightning.benchmark.progress import Progress
from tql_lightning.benchmark.worker import Job, Outcome, execute, record


def run_serially(runs: Sequence[PlannedRun], job: Job, progress: Progress) -> None:
    """Trains the runs in order; one that fails does not keep the others from running.

    Raises:
        KeyboardInterrupt: Ctrl-C, or SIGTERM; the run in hand has saved a checkpoint.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for run in runs:
            progress.show()
            try:
                execute(run, job, progress.show)
            except (OSError, ValueError) as error:  # of its folder, before or after it trained
                record(run, job.output, Outcome("failed", str(error)))
    finally:
        signal.signal(signal.SIGTERM, before)
        progress.show(now=True)
