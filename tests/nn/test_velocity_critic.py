"""floq's velocity critic: what it sees of a return, and where it carries noise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tql_lightning.nn.velocity_critic import VelocityCritic

LOW, HIGH = -30.0, 1.0


def small_critic(**settings: Any) -> VelocityCritic:
    torch.manual_seed(0)
    return VelocityCritic(3, 2, LOW, HIGH, **({"hidden_dims": (8, 8), "flow_steps": 4} | settings))


def inputs(rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(rows, 3), torch.rand(rows, 2) * 2 - 1


def test_a_return_is_seen_as_a_gaussians_masses_between_the_edges() -> None:
    critic = small_critic(num_bins=6, sigma=2.0)
    edges = [LOW + i * (HIGH - LOW) / 5 for i in range(6)]
    sigma = 2.0 * (HIGH - LOW) / 5
    for x in (LOW, -7.3, HIGH + 4.0):
        mass = [0.5 * (1.0 + math.erf((edge - x) / (sigma * math.sqrt(2.0)))) for edge in edges]
        expected = [(high - low) / (mass[-1] - mass[0]) for low, high in pairwise(mass)]
        torch.testing.assert_close(
            critic.embed(torch.tensor([[x]]))[0, 0], torch.tensor(expected), rtol=1e-4, atol=1e-6
        )


def test_as_a_scalar_a_return_is_its_share_of_the_range() -> None:
    critic = small_critic(return_embedding="scalar")
    x = torch.tensor([[LOW, HIGH, (LOW + HIGH) / 2]])
    torch.testing.assert_close(critic.embed(x).squeeze(-1), torch.tensor([[0.0, 1.0, 0.5]]))


def test_a_constant_velocity_carries_noise_by_itself_and_is_never_clipped() -> None:
    critic = small_critic()
    for member, velocity in zip(critic.members, (-100.0, 7.0), strict=True):
        for parameter in member.parameters():
            nn.init.zeros_(parameter)
        nn.init.constant_(member[-1].bias, velocity)
    x0 = torch.tensor([[0.0], [-3.0], [2.0], [1.0], [-9.0]])
    torch.testing.assert_close(critic(*inputs(), x0), x0 + torch.tensor([[-100.0, 7.0]]))


def test_steps_are_at_times_0_to_1_and_every_member_follows_its_own_x() -> None:
    critic = small_critic(flow_steps=3)
    observations, actions = inputs()
    x0 = torch.randn(5, 1)
    x = x0.expand(-1, 2).clone()
    for step in range(3):
        columns = []
        for k, member in enumerate(critic.members):
            row = [observations, actions, critic.embed(x)[:, k], torch.full((5, 1), math.cos(step / 3))]
            columns.append(member(torch.cat(row, dim=1)))
        x = x + torch.cat(columns, dim=1) / 3
    torch.testing.assert_close(critic(observations, actions, x0), x)


@pytest.mark.parametrize("embedding", ["cosine", "scalar"])
def test_time_is_seen_as_its_cosine_or_as_it_is(embedding: Any) -> None:
    critic = small_critic(time_embedding=embedding)
    observations, actions = inputs()
    x, t = torch.zeros(5, 2), torch.rand(5, 1)
    seen = t.cos() if embedding == "cosine" else t
    row = torch.cat([observations, actions, critic.embed(x)[:, 1], seen], dim=1)
    torch.testing.assert_close(critic.velocity(observations, actions, x, t)[:, 1:], critic.members[1](row))


@pytest.mark.parametrize("norm_first", [False, True])
def test_residual_blocks_add_to_what_they_read(norm_first: bool) -> None:
    critic = small_critic(residual_blocks=2, norm_first=norm_first)
    net = critic.members[0]

    def activated(layers: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        norms = [layer for layer in layers if isinstance(layer, nn.LayerNorm)]
        for linear, norm in zip(linears, norms, strict=True):
            x = linear(x)
            gelu = nn.functional.gelu
            x = gelu(norm(x), approximate="tanh") if norm_first else norm(gelu(x, approximate="tanh"))
        return x

    row = torch.randn(7, 3 + 2 + 50 + 1)
    x = activated(list(net[0]), row)
    for block in (net[1], net[2]):
        x = x + activated(list(block), x)
    torch.testing.assert_close(net(row), net[-1](x))
    assert len(net) == 4


@pytest.mark.parametrize("settings", [{}, {"residual_blocks": 1}, {"return_embedding": "scalar", "layer_norm": False}])
def test_every_weight_moves(settings: dict[str, Any]) -> None:
    critic = small_critic(**settings)
    critic(*inputs(), torch.randn(5, 1)).square().sum().backward()
    assert [name for name, p in critic.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_critics": 0}, "critic.num_critics: expected at least 1, found 0"),
        ({"flow_steps": 0}, "critic.flow_steps: expected at least 1, found 0"),
        ({"flow_steps": 10**6}, "critic.flow_steps: expected at most 1,000, found 1000000"),
        ({"num_bins": 1}, "critic.num_bins: expected at least 2, found 1"),
        ({"sigma": 0.0}, "critic.sigma: expected a finite number above 0, found 0.0"),
        ({"time_embedding": "fourier"}, "critic.time_embedding: expected cosine or scalar, found fourier"),
        ({"return_embedding": "bins"}, "critic.return_embedding: expected probabilities or scalar, found bins"),
        ({"residual_blocks": 1, "hidden_dims": (8, 4)}, r"begin and end with the same one.*found \[8, 4\]"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_critic(**settings)


def test_an_empty_range_of_returns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected finite low below high, found 0.0 and 0.0"):
        VelocityCritic(3, 2, 0.0, 0.0)
