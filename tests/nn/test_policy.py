"""The flow policy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tql_lightning.nn.critic import Critic, CriticOutput
from tql_lightning.nn.policy import BehaviourFlow, FlowPolicy, sinusoids


@pytest.fixture
def policy() -> FlowPolicy:
    torch.manual_seed(0)
    return FlowPolicy(3, 2, hidden_dims=(16, 16), flow_steps=4)


def test_flow_actions_are_euler_steps_clipped_at_the_end(policy: FlowPolicy) -> None:
    observations, noise = torch.randn(5, 3), 3 * torch.randn(5, 2)
    expected = noise.clone()
    for step in range(4):
        time = torch.full((5, 1), step / 4)
        expected = expected + policy.behaviour_flow(torch.cat([observations, expected, time], dim=-1)) / 4
    assert expected.abs().max() > 1.0
    torch.testing.assert_close(policy.flow_actions(observations, noise), expected.clamp(-1, 1))


def test_the_flow_learns_a_distribution_with_two_modes(policy: FlowPolicy) -> None:
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    observations = torch.zeros(256, 3)
    for _ in range(300):
        actions = (torch.randint(0, 2, (256, 2)) * 2 - 1) * 0.7
        x0, t = torch.randn(256, 2), torch.rand(256, 1)
        velocity = policy.velocity(observations, (1 - t) * x0 + t * actions, t)
        loss = (velocity - (actions - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        sampled = policy.flow_actions(observations, torch.randn(256, 2))
    assert (sampled.abs() - 0.7).abs().mean() < 0.25
    assert 0.3 < (sampled > 0).float().mean() < 0.7


def test_the_one_step_policy_is_not_clipped(policy: FlowPolicy) -> None:
    with torch.no_grad():
        policy.one_step_policy.linear_layers[-1].bias.fill_(5.0)
    assert policy.one_step_actions(torch.zeros(1, 3), torch.zeros(1, 2)).min() > 1.0


def test_layer_norm_can_be_left_out() -> None:
    assert FlowPolicy(3, 2, hidden_dims=(8,), layer_norm=False).behaviour_flow.norm_layers == []


def test_no_flow_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"policy.flow_steps: expected at least 1, found 0"):
        FlowPolicy(3, 2, flow_steps=0)


@pytest.mark.parametrize("name", ["flow_steps", "num_samples"])
def test_steps_and_samples_without_end_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"policy.{name}: expected at most \d,\d\d\d, found 1000000"):
        FlowPolicy(3, 2, **{name: 10**6})


def test_the_best_behaviour_action_is_chosen_by_the_smallest_or_the_mean_head(policy: FlowPolicy) -> None:
    class Table(Critic):
        """Head 0 likes large actions, head 1 likes small ones twice as much."""

        def forward(self, observations: Tensor, actions: Tensor, *, with_entropy: bool = False) -> CriticOutput:
            size = actions.sum(dim=-1)
            return CriticOutput(torch.stack([size, 10.0 - 2.0 * size], dim=-1), None)

    observations, noise = torch.randn(4, 3), torch.randn(4, 6, 2)
    with torch.no_grad():
        candidates = policy.flow_actions(observations.unsqueeze(1).expand(-1, 6, -1), noise)
        sums = candidates.sum(dim=-1)
        for aggregation, wanted in (("min", sums.argmax(dim=1)), ("mean", sums.argmin(dim=1))):
            found = policy.best_flow_actions(Table(), observations, noise, aggregation)  # type: ignore[arg-type]
            torch.testing.assert_close(found, candidates[torch.arange(4), wanted])


def test_a_behaviour_flow_has_no_one_step_policy() -> None:
    names = [name for name, _ in BehaviourFlow(3, 2, hidden_dims=(8,)).named_parameters()]
    assert {name.partition(".")[0] for name in names} == {"behaviour_flow"}


def test_time_features_are_cosines_and_sines_of_the_time() -> None:
    features = sinusoids(torch.tensor([[0.5]]), 6)
    frequencies = torch.tensor([1.0, 0.01, 0.0001])
    expected = torch.cat([(0.5 * frequencies).cos(), (0.5 * frequencies).sin()])
    torch.testing.assert_close(features[0], expected)
    flow = BehaviourFlow(3, 2, hidden_dims=(8,), time_features=6)
    assert flow.behaviour_flow.linear_layers[0].in_features == 3 + 2 + 6
    assert flow.flow_actions(torch.zeros(4, 3), torch.zeros(4, 2)).shape == (4, 2)
    with pytest.raises(ValueError, match=r"policy.time_features: expected 0, or an even number of at least 4, found 5"):
        BehaviourFlow(3, 2, time_features=5)
