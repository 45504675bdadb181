"""What the scores of a run are compared with: mean returns of its dataset and of behaviour cloning."""

from __future__ import annotations

import json
from pathlib import Path

from tql_lightning.run.folder import BASELINES_FILE
from tql_lightning.run.metrics_csv import LARGEST
from tql_lightning.system.files import write_text_whole
from tql_lightning.trust.bounded import read_json

DATASET, CLONING = "dataset", "behaviour cloning"


def record_baseline(folder: Path, name: str, mean_return: float) -> None:
    """Adds a baseline to the folder of a run, or replaces it.

    Args:
        folder: Folder of the run.
        name: `DATASET` or `CLONING`.
        mean_return: Mean undiscounted return of its episodes, in the environment of the run's evaluations.
    """
    baselines = read_baselines(folder) | {name: mean_return}
    write_text_whole(folder / BASELINES_FILE, json.dumps(baselines, indent=2) + "\n")


def read_baselines(folder: Path) -> dict[str, float]:
    """Mean returns by name; those of a damaged file are left out, as a page is the same without them."""
    try:
        found = read_json(folder / BASELINES_FILE)
    except (OSError, ValueError):
        return {}
    known = found if isinstance(found, dict) else {}
    return {
        name: float(known[name])
        for name in (DATASET, CLONING)
        if isinstance(known.get(name), int | float) and abs(known[name]) <= LARGEST
    }
