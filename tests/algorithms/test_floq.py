"""floq's targets and losses written out; the numbers of its release are in tests/test_golden_methods.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toy import grouped
from tql_lightning.algorithms.floq import Floq, FloqNoise, ReturnFlow
from tql_lightning.batch import Batch
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.velocity_critic import VelocityCritic
from tql_lightning.training.problem import Problem

ROWS, SAMPLES, ACTIONS, DISCOUNT = 4, 3, 2, 0.9


def made(**settings: Any) -> Floq:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "velocity_critic": partial(VelocityCritic, hidden_dims=(8, 8), flow_steps=2),
        "critic": partial(MLPCritic, hidden_dims=(8,)),
        "policy": partial(FlowPolicy, hidden_dims=(8,), flow_steps=2, layer_norm=False),
        "reward_range": (-2.0, 0.0),
        "discount": DISCOUNT,
        "noise_samples": SAMPLES,
    }
    model = Floq(5, ACTIONS, **grouped(defaults | settings, problem=Problem(), return_flow=ReturnFlow()))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def made_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        observations=torch.randn(ROWS, 5, generator=generator),
        actions=torch.rand(ROWS, ACTIONS, generator=generator) * 2 - 1,
        rewards=-2.0 * torch.rand(ROWS, generator=generator),
        next_observations=torch.randn(ROWS, 5, generator=generator),
        masks=torch.tensor([1.0, 1.0, 0.0, 1.0]),
    )


def made_noise(model: Floq) -> FloqNoise:
    generator = torch.Generator().manual_seed(2)
    kinds = {"normal": torch.randn, "uniform": torch.rand}
    draws = model.noise_draws()
    return FloqNoise(**{name: kinds[d.distribution](ROWS, *d.shape, generator=generator) for name, d in draws.items()})


@pytest.mark.parametrize("aggregation", ["mean", "min"])
def test_the_target_is_the_mean_over_samples_of_aggregated_returns(aggregation: Any) -> None:
    model, batch = made(target_aggregation=aggregation), made_batch()
    noise = made_noise(model)
    for row in range(ROWS):
        total = 0.0
        for sample in range(SAMPLES):
            observation = batch.next_observations[row : row + 1]
            action = model.one_step_actions(observation, noise.next_action[row, sample].unsqueeze(0))
            u = noise.next_return[row, sample]
            x0 = (model.noise_low * (1.0 - u) + model.noise_high * u).view(1, 1)
            returns = model.target_velocity_critic(observation, action, x0)
            total += (returns.mean() if aggregation == "mean" else returns.min()).item() / SAMPLES
        expected = batch.rewards[row].item() + DISCOUNT * batch.masks[row].item() * total
        assert model.td_target(batch, noise)[row].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("at_zero", [False, True])
def test_the_flow_loss_sums_over_samples_and_averages_rows_and_members(at_zero: bool) -> None:
    model, batch = made(train_at_zero_only=at_zero), made_batch()
    noise = made_noise(model)
    target, total = model.td_target(batch, noise), 0.0
    for row in range(ROWS):
        for sample in range(SAMPLES):
            u, t = noise.current_return[row, sample], 0.0 if at_zero else noise.return_time[row, sample].item()
            x0 = (model.noise_low * (1.0 - u) + model.noise_high * u).item()
            x_t = torch.full((1, 2), (1.0 - t) * x0 + t * target[row].item())
            velocity = model.velocity_critic.velocity(
                batch.observations[row : row + 1], batch.actions[row : row + 1], x_t, torch.full((1, 1), t)
            )
            total += (velocity - (target[row] - x0)).square().mean().item() / ROWS
    _, metrics = model.critic_loss(batch, noise)
    assert metrics["floq_loss"].item() == pytest.approx(total, rel=1e-4)


def test_q_is_distilled_from_the_online_flow_and_moves_nothing_else() -> None:
    model, batch = made(), made_batch()
    noise = made_noise(model)
    returns = torch.stack(
        [
            model.velocity_critic(batch.observations, batch.actions, model.noise_low * (1.0 - u) + model.noise_high * u)
            for u in noise.current_return.T.unsqueeze(-1)
        ]
    )
    values = model.critic(batch.observations, batch.actions).values
    expected = (values - returns.mean(dim=(0, 2)).unsqueeze(-1)).square().mean()
    _, metrics = model.critic_loss(batch, noise)
    torch.testing.assert_close(metrics["distilled_critic_loss"], expected, rtol=1e-4, atol=1e-4)
    metrics["distilled_critic_loss"].backward()
    assert all(parameter.grad is None for parameter in model.velocity_critic.parameters())
    assert all(parameter.grad is not None for parameter in model.critic.parameters())


def test_the_actors_q_term_moves_the_one_step_policy_and_not_the_critic() -> None:
    model, batch = made(), made_batch()
    _, metrics = model.actor_loss(batch, made_noise(model), True, lambda mean: mean)
    metrics["q_loss"].backward()
    assert all(parameter.grad is None for parameter in model.critic.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.policy.one_step_policy.parameters())


def test_every_weight_moves_and_nothing_outside_a_group_does() -> None:
    model = made()
    model.losses(made_batch(), made_noise(model), {}).total.backward()
    grouped = {id(p) for group in model.parameter_groups() for p in group.module.parameters()}
    for name, parameter in model.named_parameters():
        moves = parameter.grad is not None and bool(parameter.grad.any())
        assert moves == (id(parameter) in grouped) == (not name.startswith("target_")), name


def test_only_the_velocities_have_a_target_and_it_follows_them_before_their_step() -> None:
    model = made(tau=0.25)
    old = {name: parameter.clone() for name, parameter in model.target_velocity_critic.named_parameters()}
    model.before_step({})
    for name, parameter in model.target_velocity_critic.named_parameters():
        torch.testing.assert_close(parameter, 0.25 * model.velocity_critic.get_parameter(name) + 0.75 * old[name])


def edges(model: Floq) -> Tensor:
    return model.velocity_critic.edges[[0, -1]]


def test_returns_range_as_the_data_allow() -> None:
    model = made(reward_range=(-2.0, -1.0), final_reward_range=(0.0, 5.0), reward_margin=0.1)
    assert (model.noise_low, model.noise_high) == (pytest.approx(-2.0), pytest.approx(0.5))
    assert edges(model).tolist() == pytest.approx([-21.0, 6.0])


def test_the_releases_range_takes_in_zero_and_lets_every_reward_go_on() -> None:
    model = made(reward_range=(-2.0, -1.0), final_reward_range=None, release_range=True, reward_margin=0.1)
    assert (model.noise_low, model.noise_high) == (pytest.approx(-2.0), 0.0)
    assert edges(model).tolist() == pytest.approx([-21.0, 1.0])
    final = made(reward_range=(-2.0, -1.0), final_reward_range=(0.0, 5.0), release_range=True)
    assert final.noise_high == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_range": None}, r"model.problem.reward_range: expected rewards that differ"),
        ({"reward_range": (-1.0, -1.0)}, r"model.problem.reward_range: expected rewards that differ"),
        ({"discount": 1.0}, "model.discount: expected at least 0 and below 1, found 1.0"),
        ({"noise_samples": 0}, "model.return_flow.noise_samples: expected 1 to 4,096, found 0"),
        ({"noise_coverage": 0.0}, "model.return_flow.noise_coverage: expected a finite number above 0, found 0.0"),
        ({"target_aggregation": "max"}, "model.target_aggregation: expected mean or min, found max"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**settings)
