"""Plots of a run's metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toy import fit, toy_model
from tql_lightning.callbacks.attention_entropy import AttentionEntropyMonitor
from tql_lightning.callbacks.plots import TrainingPlots
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.report.plots import plot_runs
from tql_lightning.run.metrics_csv import read_metrics

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_run_draws_its_curves_when_it_ends(tmp_path: Path) -> None:
    evaluation = RolloutEvaluation(episodes=1, every_n_updates=5, env_id="Pendulum-v1")
    fit(
        tmp_path,
        toy_model(),
        updates=10,
        callbacks=[AttentionEntropyMonitor(), evaluation, TrainingPlots()],
        logger=ContinuedCSVLogger(str(tmp_path)),
        log_every_n_steps=5,
    )
    pictures = {path.name for path in tmp_path.glob("*.png") if path.read_bytes().startswith(PNG)}
    assert pictures == {"return.png", "attention_entropy.png", "losses.png"}


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.csv").write_text("step,train/td_loss,train/entropy_loss\n1,0.5,0\n2,,0\n3,0.25,0\n")
    assert read_metrics(tmp_path / "a" / "metrics.csv")["train/td_loss"] == ([1, 3], [0.5, 0.25])
    drawn = plot_runs({"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path / "out")
    assert [path.name for path in drawn] == ["losses.png"]


def test_plots_without_a_csv_logger_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TrainingPlots: expected a CSVLogger"):
        fit(tmp_path, toy_model(), updates=5, callbacks=[TrainingPlots()])
