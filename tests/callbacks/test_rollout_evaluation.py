"""Evaluation while training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from tests import environments  # noqa: F401  (registers)
from tests.toy import fit, toy_model
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.plots import read_metrics
from tql_lightning.rollout import rollout


def test_it_evaluates_before_at_every_interval_and_after_the_last_update(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    callback = RolloutEvaluation(episodes=3, every_n_updates=5)
    model = toy_model()
    trainer = fit(tmp_path, model, updates=12, callbacks=[callback], logger=logger, env_id="Pendulum-v1")
    logger.save()
    updates, returns = read_metrics(tmp_path / "metrics.csv")["eval/return"]
    assert updates == [0, 5, 10, 12]
    expected = rollout(model.eval().actor(), "Pendulum-v1", 3, seed=0).summary()["return"]
    assert returns[-1] == pytest.approx(expected)
    assert float(trainer.callback_metrics["eval/return"]) == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_can_follow_the_best_return(tmp_path: Path) -> None:
    evaluation = RolloutEvaluation(episodes=2, every_n_updates=5, env_id="Pendulum-v1")
    best = ModelCheckpoint(
        dirpath=tmp_path / "best",
        filename="best",
        monitor="eval/return",
        mode="max",
        every_n_train_steps=5,
        enable_version_counter=False,
    )
    fit(tmp_path, toy_model(), updates=10, callbacks=[evaluation, best])
    assert Path(best.best_model_path).name == "best.ckpt"
    assert best.best_model_score is not None


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_it_evaluates_in_every_precision(precision: Any, tmp_path: Path) -> None:
    callback = RolloutEvaluation(episodes=1, every_n_updates=5, env_id="Pendulum-v1")
    fit(tmp_path, toy_model(), updates=5, callbacks=[callback], precision=precision)
    assert callback.result is not None
    assert callback.result.lengths.tolist() == [200]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"episodes": 0}, r"RolloutEvaluation.episodes: expected at least 1, found 0"),
    ({"every_n_updates": 0}, r"RolloutEvaluation.every_n_updates"),
    ({"every_n_updates": 7}, r"expected a multiple of data.updates_per_step=5, found 7"),
    ({}, r"the dataset names no environment"),
    ({"env_id": "tests.environments:Countdown-v0"}, r"expected sizes .* found .*\(2,\)"),
    ({"env_id": "Pendulm-v1"}, r"did you mean"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_what_cannot_be_evaluated_is_refused_before_training(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = toy_model()
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, model, updates=5, callbacks=[RolloutEvaluation(**({"every_n_updates": 5} | settings))])
