"""Loggers: records of killed and continued runs, and the loggers of the documentation."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from tests.command_line import parse_fit
from tests.toy import fit, toy_model
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.loggers.tensorboard_logger import ContinuedTensorBoardLogger
from tql_lightning.loggers.trackio_logger import TrackioLogger
from tql_lightning.run.checkpoint_io import WholeCheckpointIO
from tql_lightning.run.metrics_csv import read_metrics

DOCS = Path(__file__).parents[2] / "docs"


def test_metrics_are_written_after_so_many_calls_whatever_their_steps(tmp_path: Path) -> None:
    logger = ContinuedCSVLogger(str(tmp_path), flush_logs_every_n_steps=3)
    for step in (30, 60, 90, 120):
        logger.log_metrics({"loss": 1.0}, step)
    assert read_metrics(tmp_path / "metrics.csv")["loss"][0] == [30, 60, 90]


def test_a_checkpoint_has_its_metrics_beside_it_before_it_is_written(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []

    class LookingIO(WholeCheckpointIO):
        def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
            events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/td_loss")
            rows = read_metrics(tmp_path / "metrics.csv")["train/td_loss"][0]
            seen.append((checkpoint["global_step"], rows[-1], events[-1].step))
            super().save_checkpoint(checkpoint, path, storage_options)

    loggers = [ContinuedCSVLogger(str(tmp_path)), ContinuedTensorBoardLogger(str(tmp_path))]
    checkpoint = LastCheckpoint(str(tmp_path / "checkpoints"), every_n_updates=5)
    fit(tmp_path, toy_model(), 15, [checkpoint], logger=loggers, log_every_n_steps=5, plugins=LookingIO())
    assert seen == [(5, 5, 5), (10, 10, 10), (15, 15, 15)]


def test_what_an_earlier_part_logged_at_an_update_is_not_logged_again(tmp_path: Path) -> None:
    (tmp_path / ".metrics.csv.abc.part").write_text("half of a file that a kill left")
    for part, value in enumerate((1.0, 2.0)):
        logger = ContinuedCSVLogger(str(tmp_path))
        if part:
            logger.continue_from(10)
        for step in (5, 10, 15):
            logger.log_metrics({"loss": value}, step)
        logger.log_metrics({"other": value}, 10)
        logger.save()
    series = read_metrics(tmp_path / "metrics.csv")
    assert series == {"loss": ([5, 10, 15], [1.0, 1.0, 2.0]), "other": ([10], [1.0])}
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_every_logger_of_the_documentation_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.findall(r"```yaml\n# (\w+\.yaml)\n(.*?)```", (DOCS / "loggers.md").read_text(), flags=re.DOTALL)
    expected = {
        "wandb.yaml": ("save_dir", "runs/pendulum/tql-wandb/seed_"),
        "mlflow.yaml": ("artifact_location", "runs/pendulum/tql-mlflow/seed_"),
        "trackio.yaml": ("name", "seed_"),
    }
    assert [name for name, _ in shown] == list(expected)
    for name, text in shown:
        (tmp_path / name).write_text(text)
        parsed = parse_fit(monkeypatch, "--config", "quickstart", "--config", str(tmp_path / name))
        csv, other = parsed["trainer"]["logger"]
        assert csv["class_path"] == "tql_lightning.loggers.ContinuedCSVLogger"
        argument, start = expected[name]
        assert other["init_args"][argument].startswith(start)


def test_a_logger_whose_package_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tql_lightning.loggers.trackio_logger.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install trackio"):
        TrackioLogger()


def test_tensorboard_keeps_what_was_logged_before_a_run_continues_within_the_same_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files of a second are read by a number as text: 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    begun = ContinuedTensorBoardLogger(str(tmp_path))
    for update in (5, 10, 15):
        begun.log_metrics({"loss": float(update)}, step=update)
    begun.finalize("success")
    continued = ContinuedTensorBoardLogger(str(tmp_path))
    continued.continue_from(10)
    continued.log_metrics({"loss": 20.0}, step=20)
    continued.finalize("success")
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("loss")] == [5, 10, 20]


def test_tensorboard_has_each_update_once_though_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    for part, update in enumerate((0, 10, 20)):
        monkeypatch.setattr(time, "time", lambda part=part: now - 3600 * part)
        logger = ContinuedTensorBoardLogger(str(tmp_path))
        if part:
            logger.continue_from(update)
        for later in (update + 5, update + 10, update + 15):  # the last is repeated by the next part
            logger.log_metrics({"loss": float(part)}, step=later)
        logger.finalize("success")
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [
        *((5, 0.0), (10, 0.0)),
        *((15, 1.0), (20, 1.0)),
        *((25, 2.0), (30, 2.0), (35, 2.0)),
    ]


def test_tensorboard_leaves_no_file_of_a_run_that_failed_before_it_logged(tmp_path: Path) -> None:
    logger = ContinuedTensorBoardLogger(str(tmp_path))
    logger.experiment.flush()
    assert list((tmp_path / "tensorboard").iterdir())
    logger.finalize("failed")
    assert list(tmp_path.iterdir()) == []
