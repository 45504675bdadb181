"""Rollouts play exactly the requested episodes, whatever the number of environments and processes."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from tests import environments  # noqa: F401  (registers)
from tql_lightning.cli.evaluate import table
from tql_lightning.evaluation.envs import EnvError, make_env
from tql_lightning.evaluation.rollout import ROWS, RolloutResult, episode_noise, join_shares, reset_seeds, rollout
from tql_lightning.nn.policy import Actor, FlowPolicy

COUNTDOWN = "tests.environments:Countdown-v0"
SEED_OF_DISTINCT_LENGTHS = 4
SWING = "tests.environments:Swing-v0"


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
    reference = rollout(flow_actor(), SWING, 7, seed=5, num_envs=2)
    assert_same(rollout(flow_actor(), SWING, 7, seed=5, num_envs=num_envs), reference)


def test_processes_give_the_same_result_and_do_not_hear_ctrl_c() -> None:
    def interrupt() -> None:
        for process in multiprocessing.active_children():
            os.kill(process.ident or 0, signal.SIGINT)

    reference = rollout(flow_actor(), SWING, 3, seed=5, num_envs=1)
    found = rollout(flow_actor(), SWING, 3, seed=5, num_envs=2, parallel=True, before_step=interrupt)
    assert_same(found, reference)


def test_returns_equal_a_plain_loop() -> None:
    actor, episodes, seed = flow_actor(), 2, 11
    result = rollout(actor, "Pendulum-v1", episodes, seed)
    for episode, reset_seed in enumerate(reset_seeds(seed, episodes)):
        env = make_env("Pendulum-v1")
        observation, _ = env.reset(seed=reset_seed)
        total, step, done = 0.0, 0, False
        while not done:
            noise = episode_noise(seed, episode, range(step, step + 1), (1,))
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

    result = rollout(Actor((1,), watch), COUNTDOWN, 40, seed=0, num_envs=20)
    lengths = [set(result.lengths[row::ROWS]) for row in range(ROWS)]
    for observations in seen:
        assert observations.shape == (ROWS, 2)
        for row in np.flatnonzero(observations[:, 1]):
            assert float(observations[row, 1]) in lengths[row]
    assert sum(int((observations[:, 1] > 0).sum()) for observations in seen) == result.lengths.sum()


def test_noise_depends_on_seed_episode_and_step_alone() -> None:
    noise = episode_noise(1, 3, range(10), (2, 3))
    assert noise.shape == (10, 2, 3)
    assert torch.equal(episode_noise(1, 3, range(4, 6), (2, 3)), noise[4:6])
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(episode_noise(1, 4, range(10), (2, 3)), noise)
    assert not torch.equal(episode_noise(2, 3, range(10), (2, 3)), noise)


def test_the_noise_of_each_step_is_that_of_its_episode_whatever_the_number_of_environments() -> None:
    drawn: dict[tuple[float, float], Tensor] = {}

    def watch(observations: Tensor, noise: Tensor) -> Tensor:
        for observation, own in zip(observations, noise, strict=True):
            if observation[1] > 0:
                assert torch.equal(drawn.setdefault(tuple(observation.tolist()), own.clone()), own)  # type: ignore[arg-type]
        return torch.zeros(len(observations), 1)

    for num_envs in (1, 3):
        lengths = rollout(Actor((2,), watch), COUNTDOWN, 4, seed=SEED_OF_DISTINCT_LENGTHS, num_envs=num_envs).lengths
        assert len(set(lengths)) == 4  # an observation tells its episode by its length
        assert len(drawn) == lengths.sum()


def test_several_processes_play_what_one_would() -> None:
    whole = rollout(flow_actor(), SWING, 5, seed=5)
    shares = [rollout(flow_actor(), SWING, 5, seed=5, share=(process, 2)) for process in range(2)]
    assert [len(share.returns) for share in shares] == [3, 2]
    assert_same(join_shares(shares), whole)
    spare = rollout(flow_actor(), SWING, 1, seed=5, share=(1, 2))
    assert_same(
        join_shares([rollout(flow_actor(), SWING, 1, seed=5, share=(0, 2)), spare]),
        rollout(flow_actor(), SWING, 1, seed=5),
    )


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


def test_processes_of_environments_that_are_killed_are_an_error_with_its_cause() -> None:
    steps = iter(range(100))

    def kill() -> None:
        if next(steps) == 2:
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGKILL)

    with pytest.raises(EnvError, match=r"Toy-v0 failed: its process ended unexpectedly \(exit code -9\)"):
        rollout(flow_actor(), "tests.environments:Toy-v0", 2, 0, 2, parallel=True, before_step=kill)
    assert multiprocessing.active_children() == []


def test_no_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 episode"):
        rollout(flow_actor(), "Pendulum-v1", 0, seed=0)


def test_the_summary_has_standard_errors() -> None:
    result = RolloutResult(np.array([1.0, 3.0]), np.array([5.0, 5.0]), np.array([0.0, 1.0]))
    summary = result.summary()
    assert summary["return"] == 2.0
    assert summary["return_stderr"] == pytest.approx(1.0)
    assert summary["success_rate"] == 0.5
    assert summary["length_stderr"] == summary["length_low"] - 5.0 == 0.0
    assert 1.0 <= summary["return_low"] <= summary["return_high"] <= 3.0
    assert "normalized_score" not in summary
    assert result.summary(reference_scores=(-2.0, 6.0))["normalized_score"] == 50.0


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
                noise = episode_noise(4, episode, range(step, step + 1), (3,))[0]
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


def test_one_episode_has_no_error_and_of_its_success_alone_an_interval_in_the_table() -> None:
    result = RolloutResult(np.array([-3.0]), np.array([200.0]), np.array([0.0]))
    played = {"checkpoint": "a.ckpt", "updates": 1, "env_id": "Toy-v0", "seed": 0, "extraction": "fql"}
    printed = table(played | {"episodes": 1} | result.summary())
    assert "1 episode, seed 0" in printed
    assert sorted(line.split() for line in printed.splitlines()[2:]) == [
        ["length", "200.000", "-", "-"],
        ["return", "-3.000", "-", "-"],
        ["success_rate", "0.000", "-", "[0.000,", "0.975]"],  # Clopper and Pearson's, as elsewhere
    ]
