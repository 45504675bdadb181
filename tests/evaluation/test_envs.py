"""Environments: flat observations, scaled actions, and errors."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.environments import CountdownEnv
from tests.faulty_environments import SUCCESSES, faulty
from tql_lightning.data.flatten import flat_space
from tql_lightning.evaluation.envs import EnvError, check_env, make_env
from tql_lightning.evaluation.rollout import rollout
from tql_lightning.nn.policy import Actor


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


def box(low: list[float], high: list[float]) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(np.array(low), np.array(high), dtype=np.float64)


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
        ({"actions": gymnasium.spaces.Box(0, 10, (1,), np.int64)}, "floating-point dtype, found int64"),
        ({"actions": gymnasium.spaces.Box(-1, 1, (1,), np.int64)}, "floating-point dtype, found int64"),
        ({"actions": gymnasium.spaces.Box(0, 255, (1,), np.uint8)}, "floating-point dtype, found uint8"),
        ({"actions": gymnasium.spaces.Box(0, 1, (2,), np.bool_)}, "floating-point dtype, found bool"),
        ({"actions": box([-1.0, -np.inf], [1.0, 1.0])}, "expected bounded actions"),
        ({"actions": box([0.0, -1.0], [0.0, 1.0])}, "each with low < high"),
        ({"actions": gymnasium.spaces.Box(-1.0, 1.0, (0,))}, "expected bounded actions"),
        ({"actions": gymnasium.spaces.MultiDiscrete([2, 3])}, "expected a Box of actions of rank 1"),
        ({"observations": gymnasium.spaces.Box(-1.0, 1.0, (0,))}, "expected a Box of observations"),
        ({"observations": gymnasium.spaces.Dict({})}, "expected a Box of observations"),
        ({"actions": gymnasium.spaces.MultiBinary(3)}, "expected a Box of actions of rank 1"),
        ({"actions": gymnasium.spaces.Tuple([ACTIONS, ACTIONS])}, "expected a Box of actions of rank 1"),
        ({"observations": gymnasium.spaces.Tuple([STATE, STATE])}, "expected a Box of observations, or a Dict"),
        ({"observations": gymnasium.spaces.MultiBinary(3)}, "expected a Box of observations, or a Dict"),
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
    spec = gymnasium.envs.registration.EnvSpec("Plain-v0", entry_point=Plain, max_episode_steps=3)
    monkeypatch.setitem(gymnasium.registry, "Plain-v0", spec)
    assert isinstance(make_env("Plain-v0").unwrapped, Plain)
    with pytest.raises(EnvError, match=r"environment Plain-v0: its constructor does not take .*render_mode"):
        make_env("Plain-v0", render_mode="rgb_array")


class Recorder(OtherSpacesEnv):
    """Keeps the last action; its infos cannot be stacked."""

    last: Any = None

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Recorder.last = action
        assert self.action_space.contains(action)
        observation, reward, done, truncated, info = super().step(action)
        ragged = np.zeros(self.steps)
        return observation, reward, done, truncated, {**info, "ragged": ragged, "final_obs": object()}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    for dtype in (np.float16, np.float32, np.float64):
        actions = gymnasium.spaces.Box(-60_000.0, 65_000.0, (1,), dtype)
        name = f"{np.dtype(dtype).name.title()}-v0"
        gymnasium.register(name, Recorder, kwargs={"actions": actions}, max_episode_steps=9, disable_env_checker=True)
    gymnasium.register("Endless-v0", OtherSpacesEnv, disable_env_checker=True)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.usefixtures("registered")
def test_actions_reach_the_environment_within_its_bounds_and_in_its_dtype(dtype: str) -> None:
    env = make_env(f"{dtype.title()}-v0")
    env.reset(seed=0)
    for action, expected in ((-1.0, -60_000.0), (0.0, 2_500.0), (1.0, 65_000.0)):
        env.step(np.array([action], np.float32))
        assert Recorder.last.dtype == dtype
        assert Recorder.last == pytest.approx(expected, rel=1e-2)


@pytest.mark.usefixtures("registered")
def test_infos_that_cannot_be_stacked_are_left_out() -> None:
    actor = Actor((1,), lambda observations, _: observations[:, :1].clamp(-1.0, 1.0))
    result = rollout(actor, "Float32-v0", 4, seed=0, num_envs=2)
    assert result.successes is not None
    np.testing.assert_array_equal(result.successes, result.lengths % 2 == 0)


@pytest.mark.parametrize("success", [True, np.True_, 1, 1.0, np.float32(1), np.array(True), np.array([1])])
def test_success_is_taken_from_whatever_says_true_exactly(success: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUCCESSES, "text", success)
    actor = Actor((1,), lambda observations, _: 0 * observations[:, :1])
    result = rollout(actor, faulty("text"), 3, seed=0, num_envs=2)
    assert result.successes is not None
    assert result.successes.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.usefixtures("registered")
def test_an_environment_without_a_time_limit_needs_one() -> None:
    with pytest.raises(EnvError, match=r"Endless-v0: expected a time limit, found none: .* set max_episode_steps"):
        make_env("Endless-v0")
    env = make_env("Endless-v0", max_episode_steps=np.int64(2))  # type: ignore[arg-type]
    env.reset(seed=1)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(2)] == [False, True]
    with pytest.raises(EnvError, match="max_episode_steps: expected at least 1, found 0"):
        make_env("Endless-v0", max_episode_steps=0)


def test_bounds_of_another_scale_are_refused() -> None:
    check_env("Pendulum-v1", 3, 1, ([-2.0], [2.0]))
    check_env("Pendulum-v1", 3, 1, None)
    with pytest.raises(EnvError, match=r"Pendulum-v1: action_low: expected \[-1.0\] as in the dataset, found \[-2.0\]"):
        check_env("Pendulum-v1", 3, 1, ([-1.0], [1.0]))
    with pytest.raises(EnvError, match=r"action_high: expected \[1.0\] as in the dataset, found \[2.0\]"):
        check_env("Pendulum-v1", 3, 1, ([-2.0], [1.0]))
