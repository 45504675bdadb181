"""Films made while training: the episodes that are evaluated, at their updates; a warning where none can be made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from imageio_ffmpeg import count_frames_and_secs
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.toy import fit, toy_model
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.callbacks.episode_videos import EpisodeVideos
from tql_lightning.evaluation.background import FilmJob, _outcome
from tql_lightning.evaluation.rollout import rollout
from tql_lightning.run.folder import VIDEO_FOLDER, pending_files, update_and_episode, video_files

TOY = "tests.environments:Toy-v0"


@pytest.mark.slow
def test_films_are_of_their_updates_and_in_the_logger_also_those_that_a_killed_run_left(tmp_path: Path) -> None:
    last = LastCheckpoint(str(tmp_path), every_n_updates=5)
    killed = EpisodeVideos(1, 5, seed=3, env_id=TOY)
    killed.submit = lambda _: None  # type: ignore[method-assign]  # as if the process ended before any was filmed
    fit(tmp_path, toy_model(), 5, [killed, last])
    assert list(pending_files(tmp_path, VIDEO_FOLDER)) == [0, 5]
    model, logger = toy_model(), TensorBoardLogger(tmp_path, name="tensorboard", version="")
    continued = EpisodeVideos(1, 5, seed=3, env_id=TOY)
    fit(tmp_path, model, 10, [continued, last], ckpt_path=tmp_path / "last.ckpt", logger=logger)
    films = {update_and_episode(path): path for path in video_files(tmp_path)}
    assert list(films) == [(0, 0), (5, 0), (10, 0)]
    assert pending_files(tmp_path, VIDEO_FOLDER) == {}
    evaluated = rollout(model.eval().actor(), TOY, 20, seed=3)
    assert [count_frames_and_secs(str(path))[0] for path in films.values()] == [evaluated.lengths[0] + 1] * 3
    shown = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    images = shown.Images("videos/episode_0")
    assert [(image.step, image.width, image.height) for image in images] == [(0, 16, 16), (5, 16, 16), (10, 16, 16)]
    assert {image.encoded_image_string[:6] for image in images} == {b"GIF89a"}


@pytest.mark.slow
def test_where_nothing_can_be_drawn_one_warning_says_what_to_install_and_training_goes_on(tmp_path: Path) -> None:
    films = EpisodeVideos(1, 5, env_id="tests.environments:ToyBlind-v0")
    with pytest.warns(UserWarning, match=r"(?s)no videos, training goes on .*at update 0: .*libegl1") as warned:
        trainer = fit(tmp_path, toy_model(), 10, [films])
    assert trainer.global_step == 10
    assert sum("no videos" in str(warning.message) for warning in warned) == 1
    assert [path for path in (tmp_path / VIDEO_FOLDER).rglob("*") if path.is_file()] == []


def test_what_cannot_be_written_costs_the_film_and_not_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")  # else it is tried out
    fit(tmp_path, toy_model(), 5, [LastCheckpoint(str(tmp_path), every_n_updates=5)])
    folder = tmp_path / VIDEO_FOLDER
    folder.write_text("in the way")
    job = FilmJob(5, str(tmp_path / "last.ckpt"), TOY, 1, 0, None, str(folder))
    outcome = _outcome(job, SimpleNamespace(value=0.0))
    assert outcome.result is None
    assert "its folder cannot be written to" in str(outcome.error)


@pytest.mark.slow
def test_a_logger_that_fails_is_told_of_and_training_goes_on(tmp_path: Path) -> None:
    class Full(TensorBoardLogger):
        def log_video(self, **_: Any) -> None:
            raise OSError("no space left")

    with pytest.warns(UserWarning, match=r"at update 0: logging it failed: no space left"):
        trainer = fit(tmp_path, toy_model(), 5, [EpisodeVideos(1, 5, env_id=TOY)], logger=Full(tmp_path))
    assert trainer.global_step == 5
    assert len(video_files(tmp_path)) == 2


def test_without_the_packages_one_warning_says_so_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tql_lightning.callbacks.episode_videos.missing_packages", lambda: ["imageio_ffmpeg"])
    models = toy_model(), toy_model()
    with pytest.warns(UserWarning, match=r"they need imageio_ffmpeg: pip install tql-lightning\[video\]"):
        fit(tmp_path, models[0], 5, [EpisodeVideos(1, 5, env_id=TOY)])
    assert list(tmp_path.iterdir()) == []
    fit(tmp_path, models[1], 5)
    assert all(torch.equal(value, models[1].state_dict()[name]) for name, value in models[0].state_dict().items())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"episodes": 0}, r"EpisodeVideos.episodes: expected at least 1, found 0"),
    ({"timeout": 0.0}, r"EpisodeVideos.timeout: expected above 0"),
    ({"every_n_updates": 7}, r"expected a multiple of data.updates_per_step=5, found 7"),
    ({}, r"EpisodeVideos.env_id: the dataset names no environment"),
    ({"env_id": "tests.environments:Countdown-v0"}, r"expected sizes .* found .*\(2,\)"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_what_cannot_be_filmed_is_refused_before_training(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, toy_model(), 5, [EpisodeVideos(**({"every_n_updates": 5} | settings))])
