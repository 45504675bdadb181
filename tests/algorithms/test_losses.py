"""The losses as formulas; their values and gradients in the whole are pinned by the golden cases."""

from __future__ import annotations

import pytest
import torch

from tql_lightning.algorithms import losses
from tql_lightning.nn import value_loss


def test_td_target_masks_terminations_and_aggregates_heads() -> None:
    rewards, masks = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])
    next_values = torch.tensor([[2.0, 4.0], [100.0, 100.0]], requires_grad=True)
    mean = losses.td_target(rewards, masks, next_values, 0.5, "mean")
    smallest = losses.td_target(rewards, masks, next_values, 0.5, "min")
    assert mean.tolist() == [2.5, 1.0]
    assert smallest.tolist() == [2.0, 1.0]
    assert not mean.requires_grad


def test_td_loss_compares_every_head_with_the_target_of_its_row() -> None:
    values = torch.tensor([[1.0, 2.0], [5.0, 5.0]])
    assert value_loss.td_loss(values, torch.tensor([1.0, 5.0])).item() == pytest.approx(0.25)


def test_entropy_loss_moves_the_critic_and_temperature_loss_the_temperature() -> None:
    entropy = torch.tensor([[1.0, 2.0]], requires_grad=True)
    temperature = torch.tensor([[3.0, 0.5]], requires_grad=True)
    losses.entropy_loss(entropy, temperature).backward()
    assert entropy.grad is not None
    assert entropy.grad.tolist() == [[-1.5, -0.25]]
    assert temperature.grad is None
    entropy.grad = None
    losses.temperature_loss(entropy, temperature, torch.tensor([[1.5, 1.5]])).backward()
    assert entropy.grad is None
    assert temperature.grad is not None
    assert temperature.grad.tolist() == [[-0.25, 0.25]]


def test_flow_interpolation_runs_from_noise_to_action() -> None:
    x0, actions = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    for time, expected in ((0.0, 0.0), (0.25, 0.5), (1.0, 2.0)):
        assert losses.flow_interpolation(x0, actions, torch.tensor([[time]])).item() == expected
    assert losses.behaviour_flow_loss(torch.tensor([[2.0]]), x0, actions).item() == 0.0


def test_distillation_trains_the_student_only() -> None:
    student = torch.zeros(3, 1, requires_grad=True)
    teacher = torch.ones(3, 1, requires_grad=True)
    losses.distillation_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_normalised_q_loss_divides_by_the_mean_size_of_q_without_gradient() -> None:
    values = torch.tensor([[2.0, 4.0], [-1.0, -1.0]], requires_grad=True)
    assert losses.q_loss(values).item() == -1.0
    loss = losses.q_loss(values, losses.q_scale(values))
    assert loss.item() == pytest.approx(-1.0 / 2.0)
    loss.backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.full((2, 2), -0.25 / 2.0))


def test_expectile_loss_weighs_targets_above_more_than_those_below() -> None:
    values = torch.tensor([1.0, 1.0], requires_grad=True)
    loss = losses.expectile_loss(values, torch.tensor([3.0, -1.0], requires_grad=True), 0.9)
    assert loss.item() == pytest.approx(0.5 * (0.9 * 4.0 + 0.1 * 4.0))
    loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-1.8, 0.2])


def test_the_expectile_of_a_sample_minimises_the_loss() -> None:
    torch.manual_seed(0)
    target = torch.randn(10_000)
    candidates = torch.linspace(-1.0, 2.0, 301)
    found = [losses.expectile_loss(value.expand(10_000), target, 0.9).item() for value in candidates]
    best = candidates[int(torch.tensor(found).argmin())].item()
    above, below = (target - best).clamp(min=0.0).mean(), (best - target).clamp(min=0.0).mean()
    assert (0.9 * above / (0.1 * below)).item() == pytest.approx(1.0, abs=0.1)


def test_advantage_weights_are_exponentials_with_a_cap_and_no_gradient() -> None:
    advantage = torch.tensor([-0.5, 0.0, 10.0], requires_grad=True)
    weights = losses.advantage_weights(advantage, 2.0)
    assert weights.tolist() == pytest.approx([torch.tensor(-1.0).exp().item(), 1.0, 100.0])
    assert not weights.requires_grad


def test_cloning_penalty_sums_over_dimensions() -> None:
    penalty = losses.cloning_penalty(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
    assert penalty.tolist() == [5.0]


def test_a_normalised_q_loss_passes_no_gradient_through_its_scale() -> None:
    value = torch.tensor([2.0, -4.0], requires_grad=True)
    loss = losses.normalised_q_loss(value, value.abs().mean())
    loss.backward()
    assert loss.item() == pytest.approx(1.0 / 3.0)
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([-1.0 / 6.0] * 2)
