"""Reads a run's metrics.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from tql_lightning.trust.bounded import require_regular

LARGEST = 1e39
MOST_UPDATES = 10**15
MOST_COLUMNS = 5_000
Series = dict[str, tuple[list[int], list[float]]]


def read_metrics(path: Path) -> Series:
    """Columns of a metrics.csv as (updates, values), without empty cells.

    The last row of an update counts, since a run that was killed and resumed repeats updates. Numbers beyond what
    float32 can hold count as infinite, as they are in most runs.

    Raises:
        ValueError, KeyError, TypeError, OverflowError, csv.Error: it is no such file.
    """
    require_regular(path)
    columns: dict[str, dict[int, float]] = {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if len(reader.fieldnames or ()) > MOST_COLUMNS:
            raise ValueError(f"expected at most {MOST_COLUMNS:,} columns, found {len(reader.fieldnames or ()):,}")
        for row in reader:
            for name, value in row.items():
                if name not in ("step", "epoch") and value:
                    columns.setdefault(name, {})[update_of(row)] = _bounded(float(value))
    return {name: (sorted(column), [column[update] for update in sorted(column)]) for name, column in columns.items()}


def update_of(row: Mapping[str, str]) -> int:
    """The update that a row of the file is of.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: the row has no such number.
    """
    update = int(float(row["step"]))
    if abs(update) > MOST_UPDATES:
        raise ValueError(f"step: expected at most {MOST_UPDATES:,}, found {update:.3g}")
    return update


def _bounded(value: float) -> float:
    return value if not abs(value) > LARGEST else math.copysign(math.inf, value)
