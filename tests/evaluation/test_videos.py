"""Videos show the evaluated episodes, and are complete or refused with the reason."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import imageio.v2
import pytest
import torch
from torch import Tensor

from tests import environments
from tql_lightning.evaluation.envs import EnvError
from tql_lightning.evaluation.rollout import rollout
from tql_lightning.evaluation.videos import VideoError, film_episodes, require_video
from tql_lightning.nn.policy import Actor

COUNTDOWN = "tests.environments:Countdown-v0"


def still(observations: Tensor, _: Tensor) -> Tensor:
    return torch.zeros(len(observations), 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's reader leaves its pipes open
def test_the_first_episodes_of_the_evaluation_are_filmed_frame_by_frame(tmp_path: Path) -> None:
    evaluated = rollout(Actor((1,), still), COUNTDOWN, 20, seed=3)
    paths = film_episodes(Actor((1,), still), COUNTDOWN, 3, 3, tmp_path / "videos", "last")
    assert [path.name for path in paths] == [f"last_episode_{episode}.mp4" for episode in range(3)]
    assert sorted(tmp_path.glob("videos/*")) == paths
    for path, length in zip(paths, evaluated.lengths, strict=False):
        with imageio.v2.get_reader(path) as reader:
            frames = [frame.mean() for frame in reader]
            assert reader.get_meta_data()["fps"] == 10
        assert len(frames) == length + 1
        assert frames == pytest.approx([20 * step for step in range(len(frames))], abs=8)  # compressed


def test_of_an_episode_that_fails_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="found NaN"):
        film_episodes(Actor((1,), still), "tests.environments:CountdownNaN-v0", 5, 0, tmp_path, "last")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_cannot_be_drawn_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("no OpenGL platform library")

    monkeypatch.setattr(environments.CountdownEnv, "render", broken)
    with pytest.raises(
        EnvError, match=r"(?s)no OpenGL platform .* libegl1, or libosmesa6.*pip install tql-lightning\[video\]"
    ):
        film_episodes(Actor((1,), still), COUNTDOWN, 1, 0, tmp_path, "last")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_encoder_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else real(name))
    with pytest.raises(VideoError, match=r"videos need imageio_ffmpeg: pip install tql-lightning\[video\]"):
        require_video()


def test_a_renderer_that_works_is_chosen_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "MUJOCO_GL", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tql_lightning.evaluation.videos._renders", lambda renderer: renderer == "osmesa")
    require_video()
    assert os.environ.pop("MUJOCO_GL") == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "egl")
    require_video()
    assert os.environ["MUJOCO_GL"] == "egl"
