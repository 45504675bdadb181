"""The CSV logger: what it has written when a run is killed."""

from __future__ import annotations

from pathlib import Path

from tests.toy import fit, toy_model
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.loggers import ContinuedCSVLogger
from tql_lightning.plots import read_metrics


def test_metrics_are_written_after_so_many_calls_whatever_their_steps(tmp_path: Path) -> None:
    logger = ContinuedCSVLogger(str(tmp_path), flush_logs_every_n_steps=3)
    for step in (30, 60, 90, 120):
        logger.log_metrics({"loss": 1.0}, step)
    assert read_metrics(tmp_path / "metrics.csv")["loss"][0] == [30, 60, 90]


def test_a_checkpoint_has_its_metrics_beside_it(tmp_path: Path) -> None:
    seen: list[bool] = []

    class LookingCheckpoint(LastCheckpoint):
        def _save_last_checkpoint(self, *arguments: object) -> None:
            super()._save_last_checkpoint(*arguments)  # type: ignore[arg-type]
            seen.append((tmp_path / "metrics.csv").is_file())

    logger = ContinuedCSVLogger(str(tmp_path))
    checkpoint = LookingCheckpoint(str(tmp_path / "checkpoints"), every_n_updates=5)
    fit(tmp_path, toy_model(), 20, [checkpoint], logger=logger, log_every_n_steps=5)
    assert seen
    assert all(seen)
