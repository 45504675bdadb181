"""Collected rewards and masks are those that OGBench's own relabelling gives the same states."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from tests.online.runs import go
from tql_lightning.algorithms.bc import BC
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.nn.policy import BehaviourFlow
from tql_lightning.online.settings import Online

SIZES = {"NearMaze-v0": (2, 2), "NearCube-v0": (28, 5)}


@pytest.mark.filterwarnings("ignore:.*DISPLAY environment variable", "ignore:.*precision lowered by casting")
@pytest.mark.parametrize("name", ["NearMaze-v0", pytest.param("NearCube-v0", marks=pytest.mark.slow)])
def test_rewards_and_masks_are_those_of_the_packages_relabelling(name: str, tmp_path: Path) -> None:
    from ogbench.relabel_utils import relabel_dataset

    from tests.online.near_goal import MADE, TASKS

    observation_dim, action_dim = SIZES[name]
    rng = np.random.default_rng(0)
    ends = np.arange(20) == 19
    dataset = TransitionDataset.from_arrays(
        rng.normal(size=(20, observation_dim)),
        rng.uniform(-1, 1, size=(20, action_dim)),
        np.zeros(20),
        ends,
        ends,
        rng.normal(size=(20, observation_dim)),
        name="empty",
    )
    model = BC(observation_dim, action_dim, policy=partial(BehaviourFlow, hidden_dims=(8,), flow_steps=1))
    online = Online(steps=40, random_steps=40, env_id=f"tests.online.near_goal:{name}")
    trainer = go(tmp_path, online, model=model, offline=1, data=OfflineDataModule(dataset, batch_size=4))
    buffer = trainer.datamodule.experience._buffer  # type: ignore[attr-defined]
    states = {"qpos": np.array(MADE[-1].before)}
    with closing(gymnasium.make(TASKS[name])) as env:
        relabel_dataset(TASKS[name], env, states)
    np.testing.assert_array_equal(buffer.arrays["rewards"], states["rewards"])
    np.testing.assert_array_equal(buffer.arrays["masks"], states["masks"])
    assert set(states["masks"]) == {0.0, 1.0}, "both goal states and others were seen"
    lengths = np.diff(trainer.datamodule.experience._at.episodes[:, 1:], axis=1) + 1  # type: ignore[attr-defined]
    assert lengths.max() == 15, "an episode ended by its time limit, which masks nothing"
