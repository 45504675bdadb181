"""Hands pictures to files and to whatever logger can show them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.files import write_whole

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure

DOTS_PER_INCH = 110


def save_figure(figure: Figure, path: Path, loggers: Sequence[Logger], key: str, update: int) -> None:
    """Writes a figure as PNG, whole or not at all, and logs it.

    Args:
        figure: that is finished.
        path: of the PNG.
        loggers: to show it; see `log_picture`.
        key: it is logged under.
        update: that it is of.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
    with write_whole(path) as file:
        file.write(drawn.getvalue())
    log_picture(loggers, key, path, update)


def log_picture(loggers: Sequence[Logger], key: str, path: Path, update: int) -> None:
    """Shows a PNG in every logger that can: TensorBoard, W&B and whatever has its ``log_image``, MLflow.

    Args:
        loggers: of the trainer; those that cannot show pictures are passed over.
        key: it is logged under.
        path: of the PNG.
        update: that it is of.
    """
    for logger in loggers:
        experiment: Any = logger.experiment if hasattr(logger, "experiment") else None
        if hasattr(logger, "log_image"):  # W&B
            logger.log_image(key=key, images=[str(path)], step=update)
        elif hasattr(experiment, "add_image"):  # TensorBoard
            experiment.add_image(key, read_picture(path), update, dataformats="HWC")
        elif hasattr(experiment, "log_artifact"):  # MLflow
            experiment.log_artifact(getattr(logger, "run_id", None), str(path), artifact_path=key)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) of a PNG."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
