"""What a continued run made past the update that it goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning_utilities.core.rank_zero import rank_zero_info

from tql_lightning.run.folder import SUPERSEDED_FOLDER, set_aside_after
from tql_lightning.system.full_disk import training_goes_on


@runtime_checkable
class ContinuedLogger(Protocol):
    """A logger that is told at which update a run goes on."""

    def continue_from(self, update: int) -> None:
        """Takes back what a killed run logged after this update, which is done again."""


def take_back(trainer: Any, update: int) -> None:
    """Takes out of a run what it had come to after an update that it is continued from: it does that again.

    Called on every process. Loggers forget it; evaluations, pictures and videos are set aside (`run_folder`).

    Args:
        trainer: that continues.
        update: it goes on from there; -1 for a run that begins anew.
    """
    for logger in trainer.loggers:
        if isinstance(logger, ContinuedLogger):
            logger.continue_from(update)
    folder = Path(trainer.default_root_dir)
    if trainer.is_global_zero:
        with training_goes_on(folder):
            tell_set_aside(set_aside_after(folder, update), update)


def tell_set_aside(paths: Sequence[Path], update: int) -> None:
    """Says what was set aside, if anything was.

    Args:
        paths: as they were named.
        update: that the run goes on from.
    """
    if paths:
        names = f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0])
        rank_zero_info(
            f"{names}: made after update {max(update, 0)}, from which the run goes on; moved to "
            f"{SUPERSEDED_FOLDER}/ beside"
        )
