"""Environments as the policy sees them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from tql_lightning.envs import EnvError, make_env


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


class Plain(gymnasium.Env[Any, Any]):
    """As a user's first environment is: it draws nothing, and its constructor takes nothing."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


def test_an_environment_whose_constructor_takes_nothing_is_made_and_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Plain-v0", entry_point=Plain)
    monkeypatch.setitem(gymnasium.registry, "Plain-v0", spec)
    assert isinstance(make_env("Plain-v0").unwrapped, Plain)
    with pytest.raises(EnvError, match=r"environment Plain-v0: its constructor does not take .*render_mode"):
        make_env("Plain-v0", render_mode="rgb_array")
