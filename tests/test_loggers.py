"""Loggers: what the CSV logger has written when a run is killed, and those of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.command_line import parse_fit
from tests.toy import fit, toy_model
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.loggers import ContinuedCSVLogger, TrackioLogger
from tql_lightning.plots import read_metrics

DOCS = Path(__file__).parents[1] / "docs"


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


def test_every_logger_of_the_documentation_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.findall(r"```yaml\n# (\w+\.yaml)\n(.*?)```", (DOCS / "loggers.md").read_text(), flags=re.DOTALL)
    assert [name for name, _ in shown] == ["wandb.yaml", "mlflow.yaml", "trackio.yaml"]
    for name, text in shown:
        (tmp_path / name).write_text(text)
        parsed = parse_fit(monkeypatch, "--config", "quickstart", "--config", str(tmp_path / name))
        csv, other = parsed["trainer"]["logger"]
        assert csv["class_path"] == "tql_lightning.loggers.ContinuedCSVLogger"
        assert (
            other["init_args"].get("save_dir", parsed["trainer"]["default_root_dir"]).startswith("runs/pendulum/seed_")
        )


def test_a_logger_whose_package_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tql_lightning.loggers.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install trackio"):
        TrackioLogger()
