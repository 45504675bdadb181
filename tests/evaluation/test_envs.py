"""Environments: flat observations, scaled actions, and errors."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.environments import CountdownEnv
from tql_lightning.data.flatten import flat_space
from tql_lightning.evaluation.envs import EnvError, make_env


def test_actions_are_rescaled_to_one_and_observations_are_flat_float32() -> None:
    env = make_env("Pendulum-v1")
    assert (env.action_space.low, env.action_space.high) == (-1.0, 1.0)  # type: ignore[attr-defined]
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.float32
    plain = make_env("Pendulum-v1").unwrapped
    expected, _ = plain.reset(seed=0)
    np.testing.assert_array_equal(observation, expected)
    following = env.step(np.array([0.5], dtype=np.float32))[0]
    np.testing.assert_allclose(following, plain.step(np.array([1.0], dtype=np.float32))[0], rtol=1e-6)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Pendulm-v1", "did you mean Pendulum-v1"),
        ("no_such_package:Env-v0", "no_such_package.*install"),
        ("CartPole-v1", "expected a Box of actions"),
        ("Blackjack-v1", "expected a Box"),
    ],
)
def test_environments_that_do_not_fit_are_refused(env_id: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(env_id)


PICTURE = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
STATE = gymnasium.spaces.Box(-1.0, 1.0, (2,))
ACTIONS = gymnasium.spaces.Box(-1.0, 1.0, (1,))


class OtherSpacesEnv(CountdownEnv):
    """A countdown with other spaces."""

    def __init__(
        self,
        observations: gymnasium.Space[Any] = STATE,
        actions: gymnasium.Space[Any] = ACTIONS,
        render_mode: str | None = None,
    ) -> None:
        super().__init__()
        self.observation_space, self.action_space = observations, actions  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"observations": PICTURE}, r"no pictures, found Box\(0, 255, \(8, 8, 3\), uint8\)"),
        ({"observations": gymnasium.spaces.Dict(camera=PICTURE, state=STATE)}, "no pictures, found Dict"),
        ({"observations": gymnasium.spaces.Dict(label=gymnasium.spaces.Discrete(3))}, "expected a Box of observations"),
        ({"actions": gymnasium.spaces.Box(-np.inf, np.inf, (1,))}, "OtherSpaces-v0: expected bounded actions"),
        ({"actions": gymnasium.spaces.Box(-1.0, 1.0, (1, 1))}, "expected a Box of actions of rank 1"),
    ],
)
def test_spaces_that_tql_is_not_for_are_refused(
    spaces: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("OtherSpaces-v0", OtherSpacesEnv, kwargs=spaces, disable_env_checker=True)
    with pytest.raises(EnvError, match=message):
        make_env("OtherSpaces-v0")


def test_bytes_that_are_no_picture_are_numbers() -> None:
    memory = gymnasium.spaces.Box(0, 255, (128,), np.uint8)
    assert flat_space(memory) == gymnasium.spaces.Box(0.0, 255.0, (128,))


class Plain(gymnasium.Env[Any, Any]):
    """An environment without rendering and without constructor arguments, as users begin with."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


def test_an_environment_whose_constructor_takes_nothing_is_made_and_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Plain-v0", entry_point=Plain)
    monkeypatch.setitem(gymnasium.registry, "Plain-v0", spec)
    assert isinstance(make_env("Plain-v0").unwrapped, Plain)
    with pytest.raises(EnvError, match=r"environment Plain-v0: its constructor does not take .*render_mode"):
        make_env("Plain-v0", render_mode="rgb_array")
