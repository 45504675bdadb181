"""What must not be in a run's folder when a run uses it: links, pipes, and files that a kill left half written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tql_lightning.run import folder as names
from tql_lightning.trust.bounded import require_regular

FILES = (
    *(names.CONFIG_FILE, names.ENVIRONMENT_FILE, names.METRICS_FILE, names.METRICS_BEFORE_FILE, names.LOCK_FILE),
    *(names.BASELINES_FILE, names.LOG_FILE, names.OUTCOME_FILE, "hparams.yaml"),
)
FOLDERS = (
    *(
        "checkpoints",
        names.EVALUATION_FOLDER,
        names.VIDEO_FOLDER,
        names.REPLAY_FOLDER,
        "pictures",
        "divergence",
        "tensorboard",
    ),
    *("lightning_logs", names.SUPERSEDED_FOLDER),
)


def refuse_links(folder: Path) -> None:
    """Refuses a run's folder in which a file or folder of the run is a link, a pipe or a device.

    In a stranger's folder, links could redirect writes to any of the user's files, and a pipe could stop the run for
    ever. The folder itself may be reached through a link, and files that are not the run's may be links.

    Raises:
        ValueError: a file or folder of the run is none; the message names it.
    """
    for path in _places(folder):
        if path.is_symlink():
            raise ValueError(
                f"{path}: expected a file or folder of the run itself, found a symbolic link; replace it by its "
                "target, or remove it; to keep checkpoints elsewhere, set dirpath"
            )
        if path.parent == folder and path.is_file():
            require_regular(path)
        elif path.exists() and not (path.is_dir() or path.is_file()):
            raise ValueError(f"{path}: expected a file of the run, found a pipe or a device; remove it")


def remove_unfinished(folder: Path) -> None:
    """Removes what interrupted calls of `write_whole` left; called by the process that holds the run's lock."""
    for path in (*_places(folder), *folder.glob(".*.part")):
        if path.name.startswith(".") and path.suffix == ".part":
            path.unlink(missing_ok=True)


def _places(folder: Path) -> Iterator[Path]:
    for name in FILES:
        yield folder / name
    for name in FOLDERS:
        yield folder / name
        for below, folders, files in os.walk(folder / name):
            for inside in (*folders, *files):
                yield Path(below, inside)
