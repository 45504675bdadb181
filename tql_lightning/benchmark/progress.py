"""One display of all runs of a benchmark, read from their folders, whichever engine runs them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tql_lightning.benchmark.plan import PlannedRun
from tql_lightning.benchmark.worker import outcome_of
from tql_lightning.run.folder import LOCK_FILE, METRICS_FILE
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.trust.output import write_moves

TERMINAL_SECONDS = 2.0  # between two displays
FILE_SECONDS = 60.0  # the same where the output is no terminal
RATE = "train/updates_per_second"
UP_AND_CLEAR = "\x1b[{}A\x1b[J"


class Progress:
    """Shows finished runs, and updates per second, time left and last score of those that train.

    Args:
        output: Folder of the benchmark.
        runs: All its runs.
        metric: Figure of evaluations to show.
        updates: Planned updates of each run, by folder.
    """

    def __init__(self, output: Path, runs: Sequence[PlannedRun], metric: str, updates: Mapping[str, int]) -> None:
        self.output, self.runs, self.metric, self.updates = output, runs, metric, updates
        self._shown, self._lines, self._ended = -1e9, 0, set[str]()

    def show(self, now: bool = False) -> None:
        """Shows the state of all runs, if the last display is long enough ago or ``now`` is set."""
        terminal = sys.stderr.isatty()
        if not now and time.monotonic() - self._shown < (TERMINAL_SECONDS if terminal else FILE_SECONDS):
            return
        self._shown = time.monotonic()
        lines = self.lines()
        if terminal and self._lines:
            write_moves(sys.stderr, UP_AND_CLEAR.format(self._lines))
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
        self._lines = len(lines)

    def lines(self) -> list[str]:
        """A line with the number of finished runs, and one for each run that trains."""
        training = []
        for run in self.runs:
            if run.folder in self._ended:
                continue
            outcome = outcome_of(run, self.output)
            if (self.output / run.folder / LOCK_FILE).is_file():
                training.append(f"  {run.folder}: {self._state(run)}")
            elif outcome is not None and outcome.state == "finished":
                self._ended.add(run.folder)
        return [f"{len(self._ended)} of {len(self.runs)} runs finished, {len(training)} training", *training]

    def _state(self, run: PlannedRun) -> str:
        series = {}
        with suppress(OSError, ValueError, KeyError, TypeError):  # half written
            series = read_metrics(self.output / run.folder / METRICS_FILE)
        done = max((steps[-1] for steps, _ in series.values()), default=0)
        planned = self.updates.get(run.folder)
        parts = [f"{done:,}" + (f" of {planned:,}" if planned else "") + " updates"]
        if RATE in series and planned:
            rate = series[RATE][1][-1]
            parts += [f"{rate:.3g} a second", f"{duration((planned - done) / max(rate, 1e-9))} left"]
        if f"eval/{self.metric}" in series:
            parts.append(f"{self.metric} {series[f'eval/{self.metric}'][1][-1]:.3g}")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as "45 s", "12 min" or "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
