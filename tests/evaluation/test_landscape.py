"""Q over actions, on functions with known results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tql_lightning.evaluation.landscape import STEP, q_around, smoothness, steepest_dimensions
from tql_lightning.nn.critic import Critic, CriticOutput


class Paraboloid(Critic):
    """Q(s, a) = s_0 + sum of c_i a_i^2."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.curvatures = torch.nn.Parameter(torch.tensor([3.0, 0.1, -2.0])[:action_dim])

    def forward(self, observations: Tensor, actions: Tensor, *, with_entropy: bool = False) -> CriticOutput:
        return CriticOutput(observations[:, :1] + (self.curvatures * actions.square()).sum(-1, keepdim=True), None)


def pairs(action_dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(100, 3, generator=generator)
    return observations, torch.rand(100, action_dim, generator=generator) * 2.0 - 1.0


def test_roughness_is_the_second_difference_over_the_spread_of_q() -> None:
    observations, actions = pairs(1)
    inside = actions.clamp(STEP - 1, 1 - STEP)
    spread = (observations[:, :1] + 3 * inside.square()).std().item()
    slope, roughness = smoothness(Paraboloid(3, 1), observations, actions)
    assert roughness == pytest.approx(6 * STEP**2 / spread, rel=1e-3)
    assert slope == pytest.approx(6 * inside.abs().mean().item() * STEP / spread, rel=1e-3)


def test_the_steepest_two_dimensions_are_found_and_parameters_get_no_gradient() -> None:
    critic = Paraboloid(3, 3)
    assert steepest_dimensions(critic, *pairs(3)) == (0, 2)
    assert steepest_dimensions(Paraboloid(3, 1), *pairs(1)) == (0,)
    assert critic.curvatures.grad is None


def test_q_is_taken_at_every_pair_of_offsets_and_nowhere_outside_the_actions() -> None:
    observations, actions = torch.zeros(1, 3), torch.tensor([[0.8, 0.0, 0.5]])
    values = q_around(Paraboloid(3, 3), observations, actions, (0, 2), torch.tensor([-0.5, 0.0, 0.5]))
    assert values.shape == (1, 3, 3)
    assert values[0, 1, 1] == pytest.approx(3 * 0.64 - 2 * 0.25)
    assert values[0, 0, 2] == pytest.approx(3 * 0.09 - 2 * 1.0)
    assert values[0, 2].isnan().all()
    assert not values[0, :2].isnan().any()
    assert q_around(Paraboloid(3, 1), *(part[:4] for part in pairs(1)), (0,), torch.zeros(5)).shape == (4, 5)
