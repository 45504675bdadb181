"""Loggers that continue a run's records and remove those of updates that are repeated."""

from pathlib import Path

from lightning.pytorch.loggers import Logger

from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.loggers.tensorboard_logger import ContinuedTensorBoardLogger
from tql_lightning.loggers.trackio_logger import TrackioLogger

__all__ = ["ContinuedCSVLogger", "ContinuedTensorBoardLogger", "TrackioLogger", "default_loggers"]


def default_loggers(folder: Path | str) -> list[Logger]:
    """The loggers of ``conf/tql.yaml``: metrics.csv and TensorBoard's files in the folder of a run.

    Examples:
        >>> [type(logger).__name__ for logger in default_loggers("runs/mine")]
        ['ContinuedCSVLogger', 'ContinuedTensorBoardLogger']
    """
    return [ContinuedCSVLogger(str(folder)), ContinuedTensorBoardLogger(str(folder))]
