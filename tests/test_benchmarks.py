"""What the benchmarks measure, on functions whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.collapse import STEP, smoothness, tail
from tests.toy import toy_dataset, toy_model
from tql_lightning.nn.critic import Critic, CriticOutput


class Parabola(Critic):
    """Q(s, a) = s_0 + 3 a^2 for actions of one dimension."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.curvature = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, observations: Tensor, actions: Tensor, *, with_entropy: bool = False) -> CriticOutput:
        return CriticOutput(observations[:, :1] + self.curvature * actions.square(), None)


def test_roughness_is_the_second_difference_over_the_spread_of_q() -> None:
    dataset, model = toy_dataset(), toy_model(critic=Parabola)
    observations, actions = torch.as_tensor(dataset.observations), torch.as_tensor(dataset.actions)
    actions = actions.clamp(STEP - 1, 1 - STEP)
    spread = (observations[:, :1] + 3 * actions.square()).std().item()
    slope, roughness = smoothness(model, dataset)
    assert roughness == pytest.approx(6 * STEP**2 / spread, rel=1e-3)
    assert slope == pytest.approx(6 * actions.abs().mean().item() * STEP / spread, rel=1e-3)


def test_the_tail_is_the_mean_of_the_last_tenth() -> None:
    assert tail({"x": (list(range(20)), [0.0] * 18 + [1.0, 3.0])}, "x") == 2.0
