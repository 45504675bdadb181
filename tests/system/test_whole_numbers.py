"""Whole numbers of Python and NumPy are taken, others refused by the setting's name, wherever they are given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.toy import toy_dataset
from tql_lightning.callbacks.episode_videos import EpisodeVideos
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.evaluation.env_error import EnvError
from tql_lightning.evaluation.envs import make_env
from tql_lightning.system.whole_numbers import whole


def test_whole_numbers_become_those_of_python() -> None:
    assert type(whole("x", np.int64(3))) is int
    assert whole("x", -3) == -3


@pytest.mark.parametrize(("value", "found"), [(3.0, "3.0"), ("3", "'3'"), (None, "None"), (np.float32(2), "2.0")])
def test_others_are_refused(value: object, found: str) -> None:
    with pytest.raises(ValueError, match=rf"x: expected a whole number of at least 1, found .*{found}"):
        whole("x", value, at_least=1)
    with pytest.raises(ValueError, match="x: expected at least 1, found 0"):
        whole("x", 0, at_least=1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: OfflineDataModule(toy_dataset(), seed=3.0), r"data\.seed"),  # type: ignore[arg-type]
        (lambda: OfflineDataModule(toy_dataset(), batch_size=8.5), r"data\.batch_size"),  # type: ignore[arg-type]
        (lambda: OfflineDataModule(toy_dataset(), updates_per_step=2.5), r"data\.updates_per_step"),  # type: ignore[arg-type]
        (lambda: OfflineDataModule(toy_dataset(), n_step=1.5), r"data\.n_step"),  # type: ignore[arg-type]
        (lambda: OfflineDataModule(toy_dataset(), action_chunk="2"), r"data\.action_chunk"),  # type: ignore[arg-type]
        (lambda: RolloutEvaluation(episodes=1.5), r"RolloutEvaluation\.episodes"),  # type: ignore[arg-type]
        (lambda: RolloutEvaluation(every_n_updates=2.5), r"RolloutEvaluation\.every_n_updates"),  # type: ignore[arg-type]
        (lambda: RolloutEvaluation(num_envs=1.5), r"RolloutEvaluation\.num_envs"),  # type: ignore[arg-type]
        (lambda: EpisodeVideos(seed=0.5), r"EpisodeVideos\.seed"),  # type: ignore[arg-type]
    ],
)
def test_the_setting_is_named(make: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named}: expected a whole number"):
        make()


def test_a_time_limit_that_is_none_is_a_fault_of_the_environment() -> None:
    with pytest.raises(EnvError, match=r"max_episode_steps: expected a whole number of at least 1, found 1\.5"):
        make_env("Pendulum-v1", max_episode_steps=1.5)  # type: ignore[arg-type]
