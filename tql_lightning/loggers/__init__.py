"""Loggers that continue a run's records and remove those of updates that are repeated."""

from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.loggers.tensorboard_logger import ContinuedTensorBoardLogger
from tql_lightning.loggers.trackio_logger import TrackioLogger

__all__ = ["ContinuedCSVLogger", "ContinuedTensorBoardLogger", "TrackioLogger"]
