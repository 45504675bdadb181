"""Tests that any algorithm has to pass; see `tql_lightning.testing.contract`. Needs pytest."""

from tql_lightning.testing.contract import AlgorithmContract as AlgorithmContract
