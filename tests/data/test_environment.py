"""A dataset that does not fit the environment it names is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import tests.environments  # noqa: F401  (registers its environments)
from tests.toy import toy_model
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.environment import check_environment, check_spaces, environment_spec
from tql_lightning.data.transitions import DatasetError, TransitionDataset


def dataset(env_id: str, observation_dim: int = 3, action_dim: int = 1, **settings: Any) -> TransitionDataset:
    rows = np.zeros((4, observation_dim))
    ends = [0, 0, 0, 1]
    return TransitionDataset.from_arrays(
        rows, np.zeros((4, action_dim)), np.zeros(4), np.zeros(4), ends, rows, name="toy", env_id=env_id, **settings
    )


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "bounds": (
        {"env_id": "Pendulum-v1"},
        r"toy: action_low: expected \[-2.0\] as in Pendulum-v1, found \[-1.0\]; .* give the environment's bounds",
    ),
    "upper bound": (
        {"env_id": "Pendulum-v1", "action_low": -2.0, "action_high": 3.0},
        r"toy: action_high: expected \[2.0\] as in Pendulum-v1, found \[3.0\]",
    ),
    "observations": (
        {"env_id": "Countdown-v0"},
        r"toy: observations: expected 2 columns as in Countdown-v0, found 3; name the environment",
    ),
    "goal-conditioned observations": (
        {"env_id": "Reach-v0", "action_dim": 2},
        r"toy: observations: expected 5 columns as in Reach-v0, found 3",
    ),
    "actions": (
        {"env_id": "Countdown-v0", "observation_dim": 2, "action_dim": 2},
        r"toy: actions: expected Box\(-1.0, 1.0, \(1,\), float32\) as in Countdown-v0, found 2 columns",
    ),
    "discrete actions": (
        {"env_id": "CartPole-v1", "observation_dim": 4},
        r"toy: actions: expected a Box of actions of rank 1, found Discrete\(2\) in the environment",
    ),
}


def spaces_of(low: float, high: float, dtype: Any) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
    return gymnasium.spaces.Box(-1.0, 1.0, (3,)), gymnasium.spaces.Box(low, high, (1,), dtype)


def test_bounds_are_equal_up_to_the_rounding_of_the_environments_dtype() -> None:
    data = dataset("Pendulum-v1", action_low=-0.1, action_high=0.1)
    for dtype in (np.float16, np.float32, np.float64):
        check_spaces(data, *spaces_of(-0.1, 0.1, dtype))
    with pytest.raises(DatasetError, match="action_low"):
        check_spaces(data, *spaces_of(-0.1001, 0.1, np.float32))


def test_a_files_specification_opens_no_window() -> None:
    spec = gymnasium.spec("Pendulum-v1")
    spec.kwargs = {"render_mode": "human", "g": 9.0}
    made = environment_spec(spec.to_json())
    assert not isinstance(made, str)
    assert made.kwargs == {"g": 9.0}


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8])
def test_actions_of_whole_numbers_are_refused(dtype: Any) -> None:
    with pytest.raises(DatasetError, match=rf"expected continuous actions .* found {np.dtype(dtype)} .* environment"):
        check_spaces(dataset("Pendulum-v1", action_low=0, action_high=1), *spaces_of(0, 1, dtype))


def test_terminations_at_the_environments_time_limit_are_warned_of() -> None:
    ends = np.zeros(39)
    ends[[2, 5, 8, 11, 20, 29, 38]] = 1
    rows = np.zeros((39, 5))
    data = TransitionDataset.from_arrays(
        rows, rows[:, :2], ends, ends, 0 * ends, rows, name="toy", env_id="Reach-v0", action_low=-0.5, action_high=2.0
    )
    with pytest.warns(UserWarning, match=r"toy: terminations: 3 of 7 episodes terminate after exactly 9 steps"):
        check_environment(data)


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(DatasetError, match=message):
        check_environment(dataset(**settings))


def test_what_fits_passes_and_what_cannot_be_made_here_is_told() -> None:
    assert check_environment(dataset("Pendulum-v1", action_low=-2, action_high=2)) is None
    problem = check_environment(dataset("No-v0"))
    assert problem is not None
    assert "No" in problem


def test_no_update_is_made_before_the_check(tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(DatasetError, match="action_low: expected"):
        trainer.fit(toy_model(), datamodule=OfflineDataModule(dataset("Pendulum-v1")))
    assert trainer.global_step == 0
