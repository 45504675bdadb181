"""Q-Transformer's targets and losses written out, and what its corrections of the release change."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toy import fit, grouped, toy_dataset
from tql_lightning.algorithms.q_transformer import QTransformer, QTransformerBatch, Returns
from tql_lightning.batch import NoNoise
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.returns import monte_carlo_returns
from tql_lightning.nn.autoregressive import AutoregressiveCritic
from tql_lightning.nn.layer_temperature import LayerTemperature
from tql_lightning.training.problem import Problem

ACTIONS, BINS, DISCOUNT, WORST, BEST = 3, 5, 0.9, -3.0, 0.0


def made(**settings: Any) -> QTransformer:
    torch.manual_seed(0)
    critic = partial(AutoregressiveCritic, num_bins=BINS, hidden_dim=16, head_dim=8)
    defaults: dict[str, Any] = {"critic": critic, "discount": DISCOUNT, "reward_range": (WORST, BEST)}
    model = QTransformer(4, ACTIONS, **grouped(defaults | settings, problem=Problem(), returns=Returns()))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def made_batch(rows: int = 6, **fields: Tensor) -> QTransformerBatch:
    generator = torch.Generator().manual_seed(1)
    batch = QTransformerBatch(
        observations=torch.randn(rows, 4, generator=generator),
        actions=torch.rand(rows, ACTIONS, generator=generator) * 2 - 1,
        rewards=WORST * torch.rand(rows, generator=generator),
        next_observations=torch.randn(rows, 4, generator=generator),
        masks=torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])[:rows],
        next_actions=torch.rand(rows, ACTIONS, generator=generator) * 2 - 1,
        next_action_known=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])[:rows],
        terminals=torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])[:rows],
        monte_carlo_returns=torch.full((rows,), WORST / (1.0 - DISCOUNT)),
        monte_carlo_remainders=torch.zeros(rows),
    )
    return batch._replace(**fields)


def unscaled(value: Tensor) -> Tensor:
    """From [0, 1] to returns."""
    return WORST / (1.0 - DISCOUNT) + value * (BEST - WORST) / (1.0 - DISCOUNT)


def greedy_value(model: QTransformer, observations: Tensor) -> Tensor:
    """The last dimension's best value after greedy choices, one whole pass per dimension."""
    bins = torch.zeros(len(observations), ACTIONS, dtype=torch.long)
    for dimension in range(ACTIONS):
        logits = model.target_network(observations, bins).logits
        bins[:, dimension] = logits[:, dimension].argmax(dim=-1)
    return logits[:, -1].sigmoid().amax(dim=-1)


def test_in_returns_the_last_dimensions_target_is_the_bellman_target() -> None:
    model, batch = made(monte_carlo=False, clip_target=False), made_batch()
    value = unscaled(greedy_value(model, batch.next_observations))
    expected = batch.rewards + DISCOUNT * batch.masks * value
    targets = model.targets(batch, model.bins(batch.actions))
    torch.testing.assert_close(unscaled(targets[:, -1]), expected, rtol=1e-4, atol=1e-4)


def test_a_dimension_before_the_last_learns_the_best_of_the_next() -> None:
    model, batch = made(monte_carlo=False), made_batch()
    bins = model.bins(batch.actions)
    values = model.target_network(batch.observations, bins).logits.sigmoid()
    for dimension in range(ACTIONS - 1):
        expected = values[:, dimension + 1].amax(dim=-1)
        torch.testing.assert_close(model.targets(batch, bins)[:, dimension], expected)


@pytest.mark.parametrize("next_value", ["first_dimension", "greedy", "next_action", "sarsa"])
def test_the_next_state_is_valued_as_chosen(next_value: Any) -> None:
    model, batch = made(next_value=next_value), made_batch()
    bins = model.bins(batch.next_actions)
    values = model.target_network(batch.next_observations, bins).logits.sigmoid()
    first, known = values[:, 0].amax(dim=-1), batch.next_action_known == 1.0
    expected = {
        "first_dimension": first,
        "greedy": greedy_value(model, batch.next_observations),
        "next_action": torch.where(known, values[:, -1].amax(dim=-1), first),
        "sarsa": torch.where(known, values[torch.arange(len(bins)), -1, bins[:, -1]], first),
    }[next_value]
    torch.testing.assert_close(model.next_state_value(batch), expected)


def test_a_cut_bootstraps_and_only_the_releases_rule_ends_there() -> None:
    batch = made_batch(masks=torch.ones(6), terminals=torch.ones(6))
    ours = made(monte_carlo=False).td_target(batch)
    theirs = made(monte_carlo=False, release_returns=True).td_target(batch)
    inside = made(monte_carlo=False).td_target(batch._replace(terminals=torch.zeros(6)))
    assert torch.equal(ours, inside)
    assert not torch.allclose(ours, theirs)


def test_a_true_end_is_worth_no_more_rewards_and_in_the_release_the_worst_ones() -> None:
    batch = made_batch(masks=torch.zeros(6), rewards=torch.full((6,), BEST))
    torch.testing.assert_close(made().td_target(batch), torch.ones(6))  # the best reward, then 0 for ever: the best
    released = made(release_returns=True).td_target(batch)
    torch.testing.assert_close(released, torch.full((6,), 1.0 - DISCOUNT))


def test_the_monte_carlo_bound_stays_below_the_truth_where_a_recording_is_cut() -> None:
    """A behaviour that earns -1 for ever is worth -10; its recording of 20 steps must not look better."""
    length = 20
    rewards, masks, ends = torch.full((length,), -1.0), torch.ones(length), torch.arange(length) == length - 1
    found = monte_carlo_returns(rewards.numpy(), masks.numpy(), ends.numpy(), DISCOUNT)
    fields = {
        "monte_carlo_returns": torch.from_numpy(found.returns),
        "monte_carlo_remainders": torch.from_numpy(found.remainders),
    }
    batch = made_batch()
    batch = QTransformerBatch(*(field[:1].expand(length, *field.shape[1:]) for field in batch))._replace(**fields)
    truth = -1.0 / (1.0 - DISCOUNT)

    def bounds(model: QTransformer) -> Tensor:
        for critic in (model.network, model.target_network):
            nn.init.constant_(critic.output_bias, -50.0)  # values of 0: only the bound is left
            nn.init.zeros_(critic.output)
        worst = {"rewards": torch.full((length,), WORST), "masks": torch.ones(length)}
        return unscaled(model.targets(batch._replace(**worst), model.bins(batch.actions)))

    assert (bounds(made()) <= truth + 1e-3).all()
    assert (bounds(made(release_returns=True))[-1] > truth + 5.0).all()  # one more reward looks like all there is


def test_targets_are_clipped_only_where_asked_for() -> None:
    batch = made_batch(monte_carlo_returns=torch.full((6,), 100.0))
    bins = made().bins(batch.actions)
    assert made().targets(batch, bins).amax() == 1.0
    assert made(clip_target=False).targets(batch, bins).amin() > 1.0


def test_sparse_rewards_are_returns_as_they_are() -> None:
    model = made(sparse=True, reward_range=(0.0, 0.0))
    assert model.scaled(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.0, 0.5, 1.0]


def test_returns_are_scaled_by_what_the_data_allow_and_in_the_release_by_rewards_for_ever() -> None:
    ranges = {"reward_range": (-1.0, -0.5), "final_reward_range": (3.0, 3.0)}
    ends = torch.tensor([-10.0, 3.0, 30.0])
    assert made(**ranges).scaled(ends)[:2].tolist() == pytest.approx([0.0, 1.0])
    assert made(**ranges, release_returns=True).scaled(ends)[::2].tolist() == pytest.approx([0.0, 1.0])


def test_the_losses_are_those_of_the_paper() -> None:
    model, batch = made(conservative_weight=0.7), made_batch()
    bins = model.bins(batch.actions)
    values, targets = model.network(batch.observations, bins).logits.sigmoid(), model.targets(batch, bins)
    td, conservative = 0.0, 0.0
    for row in range(6):
        for dimension in range(ACTIONS):
            for number in range(BINS):
                value = values[row, dimension, number].item()
                if number == bins[row, dimension]:
                    td += 0.5 * (value - targets[row, dimension].item()) ** 2
                else:
                    conservative += 0.5 * value**2 / (BINS - 1)
    found = model.losses(batch, NoNoise(), {})
    assert found.metrics["td_loss"].item() == pytest.approx(td / (6 * ACTIONS), rel=1e-5)
    assert found.metrics["conservative_loss"].item() == pytest.approx(conservative / (6 * ACTIONS), rel=1e-5)
    assert found.total.item() == pytest.approx((td + 0.7 * conservative) / (6 * ACTIONS), rel=1e-5)


def test_entropy_control_moves_attention_and_temperatures() -> None:
    model = made(entropy_control=partial(LayerTemperature, targets=[0.9, 0.9]))
    plain = made().losses(made_batch(), NoNoise(), {})
    found = model.losses(made_batch(), NoNoise(), {})
    found.total.backward()
    assert model.temperature is not None
    assert model.temperature.raw.grad is not None
    assert model.temperature.raw.grad.any()
    added = found.metrics["entropy_loss"] + found.metrics["temperature_loss"]
    torch.testing.assert_close(found.metrics["td_loss"], plain.metrics["td_loss"])
    torch.testing.assert_close(found.total, plain.total + added)
    for layer in range(2):
        assert 0.0 < found.metrics[f"attention_entropy/layer_{layer}"] < 1.0
        assert found.metrics[f"temperature/layer_{layer}"] == model.temperature()[layer]


def test_the_target_follows_the_critic_as_it_is_after_the_step() -> None:
    model = made(tau=0.25)
    old = {name: parameter.clone() for name, parameter in model.target_network.named_parameters()}
    model.before_step({})
    for name, parameter in model.target_network.named_parameters():
        assert torch.equal(parameter, old[name])
    model.after_step({})
    for name, parameter in model.target_network.named_parameters():
        torch.testing.assert_close(parameter, 0.25 * model.network.get_parameter(name) + 0.75 * old[name])


def test_acting_takes_the_centres_of_the_best_bins() -> None:
    low, high = [-1.0, -0.5, 0.0], [1.0, 0.5, 0.2]
    model = made(action_range=(low, high))
    observations = torch.randn(8, 4)
    actions = model.actor().act(observations, torch.zeros(8, ACTIONS))
    assert torch.equal(model.bins(actions), model.network(observations).bins)
    assert (actions > torch.tensor(low)).all()
    assert (actions < torch.tensor(high)).all()


def test_it_trains_on_returns_of_its_own_discount_only(tmp_path: Path) -> None:
    data = OfflineDataModule(toy_dataset(), discount=DISCOUNT, action_chunk=2)
    assert len(data.action_range[0]) == len(data.action_range[1]) == data.action_dim == 2
    critic = partial(AutoregressiveCritic, num_bins=BINS, hidden_dim=16, head_dim=8)
    settings: dict[str, Any] = {"critic": critic, "action_range": data.action_range}
    problem = Problem(2, reward_range=(-5.0, 5.0))
    model = QTransformer(3, 2, problem=problem, discount=DISCOUNT, **settings)
    before = {name: parameter.clone() for name, parameter in model.network.named_parameters()}
    fit(tmp_path, model, 5, data={"discount": DISCOUNT, "action_chunk": 2})
    assert [name for name, parameter in model.network.named_parameters() if torch.equal(parameter, before[name])] == []
    other = QTransformer(3, 1, problem=replace(problem, action_chunk=1), discount=0.5, critic=critic)
    with pytest.raises(ValueError, match=r"data.discount: expected the model's discount, 0.5, found 0.9"):
        fit(tmp_path, other, 5, data={"discount": DISCOUNT})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_range": None}, r"model.problem.reward_range: expected rewards that differ.*found \(None, None\)"),
        ({"reward_range": (-1.0, -1.0)}, r"model.problem.reward_range: expected rewards that differ"),
        ({"discount": 1.0}, "model.discount: expected at least 0 and below 1, found 1.0"),
        ({"next_value": "max"}, "model.next_value: expected first_dimension or greedy or next_action or sarsa, found"),
        ({"action_range": ([0.0], [1.0])}, "model.action_range: expected 3 numbers each"),
        ({"conservative_weight": -1.0}, "model.conservative_weight: expected a finite number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**settings)
