"""The evaluator: exactly the episodes asked for, the same whatever plays them."""

from __future__ import annotations

import random

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from tests import environments  # noqa: F401  (registers)
from tql_lightning.envs import EnvError, make_env
from tql_lightning.nn.policy import Actor, FlowPolicy
from tql_lightning.rollout import RolloutResult, reset_seeds, rollout, step_noise

COUNTDOWN = "tests.environments:Countdown-v0"


def flow_actor() -> Actor:
    torch.manual_seed(0)
    policy = FlowPolicy(3, 1, hidden_dims=(64, 64))
    return Actor((1,), policy.flow_actions)


def still(observations: Tensor, _: Tensor) -> Tensor:
    return torch.zeros(len(observations), 1)


def assert_same(one: RolloutResult, other: RolloutResult) -> None:
    np.testing.assert_array_equal(one.returns, other.returns)
    np.testing.assert_array_equal(one.lengths, other.lengths)
    assert (one.successes is None) == (other.successes is None)
    if one.successes is not None and other.successes is not None:
        np.testing.assert_array_equal(one.successes, other.successes)


@pytest.mark.parametrize("num_envs", [1, 3, 20])
def test_the_result_is_the_same_however_many_environments_play(num_envs: int) -> None:
    reference = rollout(flow_actor(), "Pendulum-v1", 7, seed=5, num_envs=2)
    assert_same(rollout(flow_actor(), "Pendulum-v1", 7, seed=5, num_envs=num_envs), reference)


def test_processes_give_the_same_result() -> None:
    reference = rollout(flow_actor(), "Pendulum-v1", 3, seed=5, num_envs=1)
    assert_same(rollout(flow_actor(), "Pendulum-v1", 3, seed=5, num_envs=2, parallel=True), reference)


def test_returns_equal_a_plain_loop() -> None:
    actor, episodes, seed = flow_actor(), 3, 11
    result = rollout(actor, "Pendulum-v1", episodes, seed)
    for episode, reset_seed in enumerate(reset_seeds(seed, episodes)):
        env = make_env("Pendulum-v1")
        observation, _ = env.reset(seed=reset_seed)
        total, step, done = 0.0, 0, False
        while not done:
            noise = step_noise(seed, np.full(episodes, step), (1,))[episode : episode + 1]
            with torch.inference_mode():
                action = actor.act(torch.as_tensor(observation)[None], noise)[0].numpy()
            observation, reward, terminated, truncated, _ = env.step(action)
            total, step, done = total + float(reward), step + 1, terminated or truncated
        env.close()
        assert result.lengths[episode] == step == 200
        assert result.returns[episode] == pytest.approx(total, rel=1e-3)  # one row rounds unlike three


def test_short_episodes_are_not_favoured() -> None:
    episodes = 60
    result = rollout(Actor((1,), still), COUNTDOWN, episodes, seed=0, num_envs=8)
    env = gymnasium.make(COUNTDOWN)
    expected = [float(env.reset(seed=seed)[0][1]) for seed in reset_seeds(0, episodes)]
    np.testing.assert_array_equal(result.lengths, expected)
    np.testing.assert_array_equal(result.returns, expected)
    assert result.successes is not None
    np.testing.assert_array_equal(result.successes, np.array(expected) % 2 == 0)


def test_the_policy_sees_each_observation_in_the_row_of_its_episode() -> None:
    seen: list[Tensor] = []

    def watch(observations: Tensor, _: Tensor) -> Tensor:
        seen.append(observations.clone())
        return torch.zeros(len(observations), 1)

    result = rollout(Actor((1,), watch), COUNTDOWN, 5, seed=0, num_envs=2)
    for observations in seen:
        assert observations.shape == (5, 2)
        playing = observations[:, 1] > 0
        np.testing.assert_array_equal(observations[playing, 1].numpy(), result.lengths[playing.numpy()])


def test_noise_depends_on_seed_episode_and_step_alone() -> None:
    steps = np.array([4.0, 0.0, 4.0])
    noise = step_noise(1, steps, (2, 3))
    assert noise.shape == (3, 2, 3)
    torch.testing.assert_close(step_noise(1, np.array([9.0, 0.0, 4.0]), (2, 3))[1:], noise[1:])
    assert not torch.equal(noise[0], noise[2])
    assert not torch.equal(step_noise(2, steps, (2, 3)), noise)


def test_random_states_are_left_as_found() -> None:
    actor = flow_actor()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002
    rollout(actor, "Pendulum-v1", 2, seed=0)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_reward_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(EnvError, match="expected finite rewards and observations"):
        rollout(Actor((1,), still), "tests.environments:CountdownNaN-v0", 10, seed=0)


def test_no_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 episode"):
        rollout(flow_actor(), "Pendulum-v1", 0, seed=0)


def test_the_summary_has_standard_errors() -> None:
    result = RolloutResult(np.array([1.0, 3.0]), np.array([5.0, 5.0]), np.array([0.0, 1.0]))
    summary = result.summary()
    assert summary["return"] == 2.0
    assert summary["return_stderr"] == pytest.approx(1.0)
    assert summary["success_rate"] == 0.5
    assert summary["length_stderr"] == 0.0


def test_a_chunk_of_actions_is_played_to_its_end_before_the_policy_is_asked_again() -> None:
    def act(observations: Tensor, noise: Tensor) -> Tensor:
        return (observations + 0.1 * noise).clamp(-1, 1)  # three actions of one dimension

    result = rollout(Actor((3,), act, action_chunk=3), "Pendulum-v1", 2, seed=4)
    for episode, reset_seed in enumerate(reset_seeds(4, 2)):
        env = make_env("Pendulum-v1")
        observation, _ = env.reset(seed=reset_seed)
        total = 0.0
        for step in range(200):
            if step % 3 == 0:
                noise = step_noise(4, np.full(2, float(step)), (3,))[episode]
                chunk = act(torch.as_tensor(observation), noise).numpy()
            observation, reward, *_ = env.step(chunk[step % 3 : step % 3 + 1])
            total += float(reward)
        env.close()
        assert result.lengths[episode] == 200
        assert result.returns[episode] == pytest.approx(total, rel=1e-5)


def test_a_new_episode_decides_anew_wherever_the_last_one_stopped() -> None:
    asked: list[tuple[float, ...]] = []

    def act(observations: Tensor, _: Tensor) -> Tensor:
        asked.append(tuple(observations[:, 0].tolist()))
        return torch.zeros(len(observations), 4)

    rollout(Actor((4,), act, action_chunk=4), COUNTDOWN, 3, seed=0, num_envs=1)
    lengths = [int(gymnasium.make(COUNTDOWN).reset(seed=seed)[0][1]) for seed in reset_seeds(0, 3)]
    steps = [step for length in lengths for step in range(0, length, 4)]
    assert [sum(row) for row in asked] == steps
