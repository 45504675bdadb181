"""The Gaussian policies of IQL and ReBRAC, against torch's distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from tql_lightning.nn.gaussian_policy import LOG_STD_BOUNDS, GaussianPolicy, SquashedGaussianPolicy


def policy_of(kind: type[GaussianPolicy], learned_std: bool = False) -> GaussianPolicy:
    torch.manual_seed(0)
    policy = kind(3, 2, hidden_dims=(16, 16), learned_std=learned_std)
    torch.nn.init.normal_(policy.mean_network.linear_layers[-1].weight, std=3.0)
    if policy.log_std is not None:
        torch.nn.init.normal_(policy.log_std)
    return policy


@pytest.mark.parametrize("learned_std", [False, True])
def test_log_prob_is_that_of_independent_normals(learned_std: bool) -> None:
    policy = policy_of(GaussianPolicy, learned_std)
    observations, actions = torch.randn(5, 3), torch.rand(5, 2) * 1.8 - 0.9
    mean = policy.mean(observations)
    std = torch.ones(2) if policy.log_std is None else policy.log_std.exp()
    expected = Independent(Normal(mean, std.expand_as(mean)), 1).log_prob(actions)
    torch.testing.assert_close(policy.log_prob(mean, actions), expected)


def test_squashed_log_prob_is_that_of_tanh_of_normals() -> None:
    policy = policy_of(SquashedGaussianPolicy, True)
    observations, actions = torch.randn(5, 3), torch.rand(5, 2) * 1.8 - 0.9
    mean = policy.mean(observations)
    normals = Independent(Normal(mean, policy.std(mean)), 1)
    expected = TransformedDistribution(normals, [TanhTransform()]).log_prob(actions)
    torch.testing.assert_close(policy.log_prob(mean, actions), expected, rtol=1e-4, atol=1e-4)


def test_actions_are_clipped_or_squashed_into_bounds() -> None:
    mean, noise = torch.full((1, 2), 0.5), torch.tensor([[3.0, -0.2]])
    assert policy_of(GaussianPolicy).sample(mean, noise).tolist() == [[1.0, pytest.approx(0.3)]]
    squashed = policy_of(SquashedGaussianPolicy).sample(mean, noise, temperature=0.0)
    torch.testing.assert_close(squashed, mean.tanh())


def test_the_mode_is_the_mean_and_its_tanh() -> None:
    observations = torch.randn(4, 3)
    plain, squashed = policy_of(GaussianPolicy), policy_of(SquashedGaussianPolicy)
    assert plain.mode(observations).abs().max() > 1.0  # not clipped
    torch.testing.assert_close(squashed.mode(observations), plain.mode(observations).tanh())


def test_the_standard_deviation_is_clipped_and_then_has_no_gradient() -> None:
    policy = policy_of(GaussianPolicy, True)
    assert policy.log_std is not None
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([9.0, 0.0]))
    std = policy.std(torch.zeros(1, 2))
    assert std[0, 0].item() == pytest.approx(torch.tensor(LOG_STD_BOUNDS[1]).exp().item())
    std.sum().backward()
    assert policy.log_std.grad is not None
    assert policy.log_std.grad.tolist() == [0.0, 1.0]


def test_a_constant_standard_deviation_is_no_parameter() -> None:
    names = [name for name, _ in GaussianPolicy(3, 2, hidden_dims=(8,)).named_parameters()]
    assert {name.partition(".")[0] for name in names} == {"mean_network"}


def test_first_actions_are_near_zero() -> None:
    torch.manual_seed(0)
    policy = GaussianPolicy(3, 2, hidden_dims=(64, 64))
    bound = 0.1 * (6.0 / (64 + 2)) ** 0.5
    assert policy.mean_network.linear_layers[-1].weight.abs().max() <= bound
    assert policy.mean(torch.randn(100, 3)).abs().max() < 0.5
