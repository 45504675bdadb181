"""Loggers that continue a run's records, and forget what a killed run logged past the update it goes on from."""

from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.loggers.tensorboard_logger import ContinuedTensorBoardLogger
from tql_lightning.loggers.trackio_logger import TrackioLogger

__all__ = ["ContinuedCSVLogger", "ContinuedTensorBoardLogger", "TrackioLogger"]
