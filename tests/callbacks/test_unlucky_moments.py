"""Environments at fault, waits that end, and work that a stop left over."""

from __future__ import annotations

import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from tests.faulty_environments import FAULTS, faulty
from tests.toy import fit, toy_model
from tql_lightning.callbacks import background
from tql_lightning.callbacks.checkpointing import GracefulInterrupt, LastCheckpoint
from tql_lightning.callbacks.episode_videos import EpisodeVideos
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.evaluation import rollout as rollout_module
from tql_lightning.evaluation.envs import EnvError
from tql_lightning.evaluation.rollout import rollout
from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.run.folder import VIDEO_FOLDER, evaluation_files, pending_files, video_files

TOY = "tests.environments:Toy-v0"


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_of_an_environment_fails_the_evaluation_and_training_goes_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_module, "MOST_STEPS", 50)
    evaluation = RolloutEvaluation(episodes=2, every_n_updates=5, env_id=faulty(kind))
    with pytest.warns(UserWarning, match="environment") as warned:
        trainer = fit(tmp_path, toy_model(), 10, [evaluation])
    assert trainer.global_step == 10
    assert evaluation.failures == 3
    assert max(len(str(warning.message)) for warning in warned) < 500


@pytest.mark.parametrize("observer", [RolloutEvaluation, EpisodeVideos])
def test_an_environment_of_other_bounds_than_the_dataset_is_refused_before_training(
    observer: Any, tmp_path: Path
) -> None:
    model = toy_model()
    with pytest.raises(EnvError, match=r"action_low: expected \[-2.0\] as in the dataset, found \[-1.0\]; actions"):
        fit(tmp_path, model, 1, [observer(env_id="tests.environments:ToyNarrow-v0")])
    assert model.current_update == 0


def test_the_time_limit_of_a_callback_is_the_environments(tmp_path: Path) -> None:
    evaluation = RolloutEvaluation(episodes=4, every_n_updates=5, env_id=TOY, max_episode_steps=2)
    fit(tmp_path, toy_model(), 5, [evaluation])
    assert evaluation.result is not None
    assert max(evaluation.result.lengths) == 2


@pytest.mark.parametrize("kind", ["exit", "text", "close", "endless"])
def test_the_first_fault_is_the_one_that_is_told(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_module, "MOST_STEPS", 50)
    told = {
        "exit": "SystemExit",
        "text": "a number as success, found yes",
        "close": "the simulator is gone",
        "endless": "50 steps",
    }
    with pytest.raises(EnvError, match=told[kind]):
        rollout(toy_model().eval().actor(), faulty(kind), 3, seed=0)


class Signals(Callback):
    """As if so many signals had come while the run waits at its end."""

    def __init__(self, interrupt: GracefulInterrupt, evaluation: RolloutEvaluation) -> None:
        self.interrupt, self.evaluation = interrupt, evaluation

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # type: ignore[override]
        if trainer.global_step == 5:
            self.interrupt._handle(signal.SIGTERM, None)


@pytest.mark.parametrize("how", ["a second signal", "a limit of seconds"])
def test_a_run_that_a_signal_ended_does_not_wait_for_an_endless_episode(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt = GracefulInterrupt()
    evaluation = RolloutEvaluation(episodes=1, every_n_updates=100, env_id=faulty("endless"), background=True)
    last = LastCheckpoint(str(tmp_path / "checkpoints"), 100)
    waited = [0]
    submit = evaluation.submit

    def submit_and_wait(job: Any) -> None:
        submit(job)
        assert evaluation._evaluator is not None
        wait = evaluation._evaluator.next_outcome

        def outcome(seconds: float = 0.0) -> Any:
            waited[0] += seconds > 0
            if how == "a second signal" and waited[0] == 3:
                interrupt._handle(signal.SIGTERM, None)
            return wait(seconds)

        evaluation._evaluator.next_outcome = outcome  # type: ignore[method-assign]

    monkeypatch.setattr(evaluation, "submit", submit_and_wait)
    monkeypatch.setattr(background, "AFTER_SIGNAL_SECONDS", 1.0 if how == "a limit of seconds" else 600.0)
    trainer = fit(tmp_path, toy_model(), 50, [interrupt, evaluation, Signals(interrupt, evaluation), last])
    assert trainer.global_step == 5
    assert "Left for the continued run: evaluations of updates 0" in capsys.readouterr().err
    assert list(pending_files(tmp_path)) == [0]
    assert evaluation_files(tmp_path) == {}


@pytest.mark.slow
def test_films_that_a_finished_run_left_over_are_made_when_it_is_continued(tmp_path: Path) -> None:
    last = LastCheckpoint(str(tmp_path), every_n_updates=5)
    killed = EpisodeVideos(1, 5, seed=3, env_id=TOY)
    killed.submit = lambda _: None  # type: ignore[method-assign]  # as if killed while it waited at its end
    fit(tmp_path, toy_model(), 5, [killed, last])
    assert list(pending_files(tmp_path, VIDEO_FOLDER)) == [0, 5]
    fit(tmp_path, toy_model(), 5, [EpisodeVideos(1, 5, seed=3, env_id=TOY), last], ckpt_path=tmp_path / "last.ckpt")
    assert len(video_files(tmp_path)) == 2
    assert pending_files(tmp_path, VIDEO_FOLDER) == {}


class KilledError(Exception):
    """Ends training as a kill would: nothing is written after it."""


class KillAfter(Callback):
    """Ends training after an update's checkpoint, when validation and all is done."""

    def __init__(self, update: int | None) -> None:
        self.update = update

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:  # type: ignore[override]
        if self.update is not None and trainer.global_step == self.update:
            raise KilledError


@pytest.mark.slow
def test_kills_at_a_checkpoint_without_validation_and_then_with_one_leave_no_validation_to_repeat(
    tmp_path: Path,
) -> None:
    def run(folder: Path, *kills: int | None) -> list[str]:
        last = folder / "checkpoints" / "last.ckpt"
        for kill in kills:
            callbacks = [LastCheckpoint(str(last.parent), 4), KillAfter(kill)]
            settings = {"logger": [ContinuedCSVLogger(str(folder))], "val_check_interval": 6, "log_every_n_steps": 100}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
                try:
                    fit(folder, toy_model(), 30, callbacks, last if last.exists() else None, 1, **settings)
                except KilledError:
                    continue
        return (folder / "metrics.csv").read_text().splitlines()

    assert run(tmp_path / "killed", 4, 12, None) == run(tmp_path / "whole", None)
    assert run(tmp_path / "often", 4, 8, 12, 16, 20, 24, 28, None) == run(tmp_path / "whole", None)
