"""Observers of training; import them as ``tql_lightning.callbacks``. Training is the same with and without."""
