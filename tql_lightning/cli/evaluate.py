"""The command `tql evaluate`: plays episodes with checkpoints and prints a table of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.run.baselines import CLONING, record_baseline
from tql_lightning.run.folder import BASELINES_FILE, METRICS_FILE
from tql_lightning.system.files import write_text_whole

COLUMNS = ("return", "success_rate", "normalized_score", "length")


def evaluate_all(
    checkpoints: Sequence[str], play: Callable[[str], dict[str, Any]], file: str | None, as_in_training: bool
) -> None:
    """Plays with each checkpoint and prints its table as soon as it is known.

    Args:
        checkpoints: Paths of checkpoints.
        play: Function from such a path to its figures, as of `evaluate_checkpoint`.
        file: JSON file for the figures; None for none.
        as_in_training: Whether the episodes are those of the run's own evaluations, so that behaviour cloning is
            recorded for its reports.

    Raises:
        CheckpointError: A checkpoint cannot be used.
    """
    for checkpoint in checkpoints[1:]:
        load_checkpoint(checkpoint)  # report a bad checkpoint before playing the first
    figures = []
    for checkpoint in checkpoints:
        entry = play(checkpoint)
        figures.append(entry)
        print(table(entry), flush=True)
        if entry["extraction"] == "behaviour_flow" and as_in_training:
            _record_cloning(Path(checkpoint).parent.parent, entry)
        for path in entry["videos"]:
            print(f"  wrote {path}")
        if file:
            write_text_whole(Path(file), json.dumps(figures, indent=2) + "\n")
    if file:
        print(f"wrote {file}")


def _record_cloning(folder: Path, entry: Mapping[str, Any]) -> None:
    """Adds behaviour cloning to what the report compares a run with."""
    if (folder / METRICS_FILE).is_file():
        try:
            record_baseline(folder, CLONING, entry)
        except OSError as error:
            print(f"  {folder / BASELINES_FILE}: not written, so that reports lack this baseline ({error})")


def table(entry: Mapping[str, Any]) -> str:
    """A heading for a checkpoint, then mean, standard error and interval of each figure."""
    plural = "s" if entry["episodes"] > 1 else ""
    what = f"{entry['env_id']}, {entry['episodes']} episode{plural}, seed {entry['seed']}"
    what += f", {entry['extraction']}" if entry["extraction"] else ""
    lines = [
        f"{entry['checkpoint']} after {entry['updates']:,} updates: {what}",
        f"  {'':18}{'mean':>12}{'stderr':>12}{'95 % interval':>26}",
    ]
    for name in COLUMNS:
        if name in entry:
            low, high = entry[f"{name}_low"], entry[f"{name}_high"]
            interval = f"[{low:.3f}, {high:.3f}]" if low < high else "-"
            error = f"{entry[f'{name}_stderr']:.3f}" if entry["episodes"] > 1 else "-"  # undefined for one
            lines.append(f"  {name:18}{entry[name]:12.3f}{error:>12}{interval:>26}")
    return "\n".join(lines)
