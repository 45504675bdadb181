"""Reads a run's metrics.csv."""

from __future__ import annotations

import csv
from pathlib import Path

Series = dict[str, tuple[list[int], list[float]]]


def read_metrics(path: Path) -> Series:
    """Columns of a metrics.csv as (updates, values), without empty cells.

    The last row of an update counts, since a run that was killed and resumed repeats updates.
    """
    columns: dict[str, dict[int, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name not in ("step", "epoch") and value:
                    columns.setdefault(name, {})[int(float(row["step"]))] = float(value)
    return {name: (sorted(column), [column[update] for update in sorted(column)]) for name, column in columns.items()}
