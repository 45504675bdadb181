"""TQL with extraction "implicit": critic and behaviour flow alone are trained, by formulas written apart from `TQL`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toy import fit, toy_chunk, toy_model
from tql_lightning.algorithms.tql import TQL, TQLNoise
from tql_lightning.batch import Batch, at_update
from tql_lightning.nn.critic import Critic, TransformerCritic

CANDIDATES, STEPS = 5, 2


def implicit_model(**settings: Any) -> TQL:
    """A toy model in float64 whose target critic has moved away from the critic."""
    model = toy_model(extraction="implicit", num_samples=CANDIDATES, **settings).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.target_critic.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.2)
    return model


def update_of(model: TQL) -> tuple[Batch, TQLNoise]:
    batch, noise = (at_update(part, 0) for part in toy_chunk(model))
    return Batch(*(part.double() for part in batch)), TQLNoise(*(part.double() for part in noise))


def best_action(model: TQL, critic: Critic, observation: Tensor, noise: Tensor) -> Tensor:
    """The best candidate of one observation, by a loop: (n_s,), (N, n_a) -> (n_a,)."""
    found, highest = torch.empty(0), -float("inf")
    for start in noise:
        action = start
        for step in range(STEPS):
            time = torch.tensor([step / STEPS], dtype=action.dtype)
            action = action + model.policy.behaviour_flow(torch.cat([observation, action, time])) / STEPS
        action = action.clamp(-1.0, 1.0)
        score = float(critic(observation[None], action[None]).values.min())
        if score > highest:
            found, highest = action, score
    return found


def chosen(model: TQL, critic: Critic, batch: Batch, noise: TQLNoise) -> Tensor:
    rows = zip(batch.next_observations, noise.next_action, strict=True)
    return torch.stack([best_action(model, critic, *row) for row in rows])


@pytest.mark.parametrize("aggregation", ["mean", "min"])
def test_loss_and_gradients_are_those_of_the_formulas(aggregation: str) -> None:
    model = implicit_model(target_aggregation=aggregation)
    batch, noise = update_of(model)
    assert noise.next_action.shape == (16, CANDIDATES, 1)
    with torch.no_grad():
        actions = chosen(model, model.critic, batch, noise)
        assert not torch.equal(actions, chosen(model, model.target_critic, batch, noise))
        heads = model.target_critic(batch.next_observations, actions).values
        value = heads.mean(1) if aggregation == "mean" else heads.min(1).values
        target = batch.rewards + 0.99 * batch.masks * value
    output = model.critic(batch.observations, batch.actions, with_entropy=True)
    td_loss = ((output.values - target[:, None]) ** 2).mean()
    assert model.temperature is not None
    alpha, entropy = model.temperature.raw.exp(), output.attention_entropy
    entropy_target = model.current_inputs()["target_entropy"]
    control = (-alpha.detach() * entropy).mean() + (alpha * (entropy.detach() - entropy_target)).mean()
    x_t = (1 - noise.flow_t) * noise.flow_x0 + noise.flow_t * batch.actions
    velocity = model.policy.behaviour_flow(torch.cat([batch.observations, x_t, noise.flow_t], dim=1))
    flow_loss = ((velocity - (batch.actions - noise.flow_x0)) ** 2).mean()

    found = model.losses(batch, noise, model.current_inputs())
    torch.testing.assert_close(found.total, td_loss + control + flow_loss)
    torch.testing.assert_close(found.metrics["td_loss"], td_loss.detach())
    torch.testing.assert_close(found.metrics["behaviour_flow_loss"], flow_loss.detach())
    trained = [parameter for group in model.parameter_groups() for parameter in group.parameters()]
    expected = torch.autograd.grad(td_loss + control + flow_loss, trained)
    for ours, formula in zip(torch.autograd.grad(found.total, trained), expected, strict=True):
        torch.testing.assert_close(ours, formula)


def test_the_one_step_policy_alone_stays_as_it_started(tmp_path: Path) -> None:
    model = toy_model(extraction="implicit", weight_decay=0.1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fit(tmp_path, model, updates=3)
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {name for name in before if name.startswith("policy.one_step_policy.")}


def test_best_of_n_trains_as_fql(tmp_path: Path) -> None:
    one, other = toy_model(extraction="best_of_n"), toy_model(extraction="fql")
    for model in (one, other):
        fit(tmp_path, model, updates=3)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_dropout_spares_the_choice_of_the_next_action() -> None:
    model = implicit_model(critic=partial(TransformerCritic, hidden_dim=16, head_dim=8, dropout=0.5)).train()
    batch, noise = update_of(model)
    found = [model.next_actions(batch.next_observations, noise.next_action) for _ in range(2)]
    assert torch.equal(*found)
    model.critic.eval()
    with torch.no_grad():
        torch.testing.assert_close(found[0], chosen(model, model.critic, batch, noise))


def test_a_continued_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, first, rest = (toy_model(extraction="implicit") for _ in range(3))
    fit(tmp_path, whole, updates=10)
    fit(tmp_path, first, updates=5).save_checkpoint(tmp_path / "stop.ckpt")
    fit(tmp_path, rest, updates=10, ckpt_path=tmp_path / "stop.ckpt")
    assert all(torch.equal(value, rest.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("before", "now", "remedy"),
    [("fql", "implicit", "fql or best_of_n"), ("implicit", "best_of_n", "implicit")],
)
def test_a_run_that_trained_other_networks_is_not_continued(before: str, now: str, remedy: str, tmp_path: Path) -> None:
    fit(tmp_path, toy_model(extraction=before), updates=5).save_checkpoint(tmp_path / "stop.ckpt")
    with pytest.raises(ValueError, match=f"model.extraction: expected {remedy}, as the checkpoint trained"):
        fit(tmp_path, toy_model(extraction=now), updates=10, ckpt_path=tmp_path / "stop.ckpt")


def test_an_untrained_one_step_policy_does_not_act() -> None:
    model = toy_model(extraction="implicit")
    with pytest.raises(ValueError, match=r"extraction: expected best_of_n or implicit or behaviour_flow.*found fql"):
        model.actor("fql")
    assert model.actor().noise_shape == model.actor("best_of_n").noise_shape == (16, 1)
