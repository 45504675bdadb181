"""How the one-step policy is held to the behaviour flow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tql_lightning.algorithms.flow_matching import distill
from tql_lightning.nn.policy import FlowPolicy


def policy_and_inputs(distillation: str) -> tuple[FlowPolicy, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    policy = FlowPolicy(3, 2, hidden_dims=(16,), flow_steps=4, distillation=distillation)  # type: ignore[arg-type]
    return policy, torch.randn(8, 3), torch.randn(8, 2), torch.rand(8, 1)


def test_the_anchor_is_one_velocity_on_the_line_from_the_noise_to_the_action() -> None:
    policy, observations, noise, t = policy_and_inputs("anchor")
    student, loss = distill(policy, observations, noise, t)
    velocity = policy.velocity(observations, (1 - t) * noise + t * student, t)
    torch.testing.assert_close(loss, (student - noise - velocity).square().mean())


@pytest.mark.parametrize("distillation", ["euler", "anchor"])
def test_distillation_moves_the_one_step_policy_and_not_the_flow(distillation: str) -> None:
    policy, *inputs = policy_and_inputs(distillation)
    distill(policy, *inputs)[1].backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in policy.behaviour_flow.parameters())
    assert all(parameter.grad is not None for parameter in policy.one_step_policy.parameters())


def test_the_anchors_gradient_goes_through_the_velocity_too() -> None:
    policy, observations, noise, t = policy_and_inputs("anchor")
    last = policy.one_step_policy[-1].bias
    distill(policy, observations, noise, t)[1].backward()  # type: ignore[no-untyped-call]
    student = policy.one_step_actions(observations, noise).detach().requires_grad_()
    velocity = policy.velocity(observations, (1 - t) * noise + t * student, t)
    (student - noise - velocity).square().mean().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(last.grad, student.grad.sum(dim=0))


def test_a_straight_flow_holds_both_ways_to_the_same_action() -> None:
    """Where v is constant, its Euler steps end at z + v, and both distances are 0 for a policy that acts so."""
    for distillation in ("euler", "anchor"):
        policy, observations, noise, t = policy_and_inputs(distillation)
        for parameter in policy.parameters():
            torch.nn.init.zeros_(parameter)
        with torch.no_grad():
            policy.behaviour_flow[-1].bias.fill_(0.25)
            policy.one_step_policy[-1].bias.fill_(0.25)
        assert float(distill(policy, observations, 0.0 * noise, t)[1].detach()) == 0.0


def test_an_unknown_distillation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"policy\.distillation: expected 'euler' or 'anchor', found 'straight'"):
        policy_and_inputs("straight")
