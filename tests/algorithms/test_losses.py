"""The losses as formulas; their values and gradients in the whole are pinned by the golden cases."""

from __future__ import annotations

import pytest
import torch

from tql_lightning.algorithms import losses


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
    assert losses.td_loss(values, torch.tensor([1.0, 5.0])).item() == pytest.approx(0.25)


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
