"""What the scores of a run are compared with: its dataset and behaviour cloning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tql_lightning.run.folder import BASELINES_FILE
from tql_lightning.run.metrics_csv import LARGEST
from tql_lightning.system.files import write_text_whole
from tql_lightning.trust.bounded import read_json

DATASET, CLONING = "dataset", "behaviour cloning"
SCORES = ("success_rate", "normalized_score", "return")  # by preference
Scores = Mapping[str, float]


def record_baseline(folder: Path, name: str, scores: Mapping[str, object]) -> None:
    """Adds a baseline to the folder of a run, or replaces it.

    Args:
        folder: Folder of the run.
        name: `DATASET` or `CLONING`.
        scores: Means over its episodes, in the environment of the run's evaluations; of these, those in `SCORES` are
            kept.
    """
    baselines = read_baselines(folder) | {name: _known(scores)}
    write_text_whole(folder / BASELINES_FILE, json.dumps(baselines, indent=2) + "\n")


def read_baselines(folder: Path) -> dict[str, Scores]:
    """Scores by name of the baseline; those of a damaged file are left out, as a page is the same without them."""
    try:
        found = read_json(folder / BASELINES_FILE)
    except (OSError, ValueError):
        return {}
    named = found if isinstance(found, dict) else {}
    return {name: scores for name in (DATASET, CLONING) if (scores := _known(named.get(name)))}


def _known(scores: object) -> dict[str, float]:
    given = scores if isinstance(scores, Mapping) else {}
    return {
        name: float(given[name])
        for name in SCORES
        if isinstance(given.get(name), int | float) and abs(given[name]) <= LARGEST
    }
