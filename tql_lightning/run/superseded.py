"""Records of a continued run that are later than the update it continues from."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning_utilities.core.rank_zero import rank_zero_info

from tql_lightning.run.checkpoint_file import SUFFIX
from tql_lightning.run.folder import METRICS_FILE, SUPERSEDED_FOLDER, evaluation_files, set_aside_after, writes_nothing
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.system.full_disk import training_goes_on


@runtime_checkable
class ContinuedLogger(Protocol):
    """A logger that can take back records of updates that are repeated."""

    def continue_from(self, update: int) -> None:
        """Takes back what was logged after this update, since those updates are repeated."""


def take_back(trainer: Any, update: int) -> None:
    """Removes records of later updates from a continued run, since it repeats those updates.

    Loggers take their records back; evaluations, pictures and videos move into ``superseded/`` (`run.folder`). Call it
    on every process, with update -1 for a run that is restarted.
    """
    if writes_nothing(trainer):
        return
    for logger in trainer.loggers:
        if isinstance(logger, ContinuedLogger):
            logger.continue_from(update)
    folder = Path(trainer.default_root_dir)
    if trainer.is_global_zero:
        with training_goes_on(folder):
            tell_set_aside(set_aside_after(folder, update), update)


def has_begun(folder: Path) -> bool:
    """Whether a run's folder holds anything of an update: a checkpoint, or metrics or an evaluation after it."""
    checkpoints = [path for path in folder.rglob(f"*{SUFFIX}") if path.parent.name != "pending"]
    if checkpoints or any(evaluation_files(folder)):
        return True
    try:
        series = read_metrics(folder / METRICS_FILE)
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError, OverflowError, csv.Error):
        return True
    return any(any(updates) for updates, _ in series.values())


def tell_set_aside(paths: Sequence[Path], update: int) -> None:
    """Logs the former paths of files that were set aside by a run that continues from ``update``."""
    if paths:
        names = f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0])
        rank_zero_info(
            f"{names}: made after update {max(update, 0)}, which the run continues from; moved to "
            f"{SUPERSEDED_FOLDER}/ beside"
        )
