"""BC, IQL, IFQL, ReBRAC and QC beside their golden numbers: settings, targets, what they compose with."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.test_docs import glossary_patterns
from tests.toy import fit
from tql_lightning.algorithms.bc import BC, Demonstrations
from tql_lightning.algorithms.ifql import IFQL
from tql_lightning.algorithms.iql import IQL
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.algorithms.qc import QC
from tql_lightning.algorithms.rebrac import ReBRAC, Smoothing
from tql_lightning.callbacks.attention_map import AttentionMap
from tql_lightning.callbacks.q_landscape import QLandscape
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.gaussian_policy import GaussianPolicy, SquashedGaussianPolicy
from tql_lightning.nn.policy import BehaviourFlow, FlowPolicy
from tql_lightning.nn.temperature import AttentionTemperature
from tql_lightning.nn.value_loss import HLGauss
from tql_lightning.nn.value_network import ValueNetwork
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.optimisation import Optimisation
from tql_lightning.training.problem import Problem

SIZES: dict[str, Any] = {"hidden_dims": (16,)}
CRITIC = partial(MLPCritic, **SIZES)
VALUE = partial(ValueNetwork, **SIZES)
GAUSSIAN = partial(GaussianPolicy, **SIZES)
SQUASHED = partial(SquashedGaussianPolicy, **SIZES)
FLOW = partial(BehaviourFlow, **SIZES, flow_steps=2, num_samples=3)
FLOW_POLICY = partial(FlowPolicy, **SIZES, flow_steps=2)
METHODS: dict[str, Callable[..., Algorithm]] = {
    "iql": partial(IQL, value=VALUE, policy=GAUSSIAN),
    "ddpgbc": partial(IQL, value=VALUE, policy=partial(GAUSSIAN, learned_std=True), actor_loss="ddpgbc"),
    "ifql": partial(IFQL, value=VALUE, policy=FLOW),
    "rebrac": partial(ReBRAC, policy=SQUASHED),
    "qc": partial(QC, policy=FLOW, problem=Problem()),
    "qc_fql": partial(QC, policy=FLOW_POLICY, extraction="fql", problem=Problem()),
}


def made(name: str, observation_dim: int = 3, action_dim: int = 1, **settings: Any) -> Any:
    torch.manual_seed(0)
    return METHODS[name](observation_dim, action_dim, **({"critic": CRITIC} | settings))


def drawn(model: Any, size: int = 8, seed: int = 0) -> tuple[Any, Any]:
    """A random batch and noise of a model."""
    generator = torch.Generator().manual_seed(seed)
    fields = {
        "observations": torch.randn(size, model.observation_dim, generator=generator),
        "actions": torch.rand(size, model.action_dim, generator=generator) * 2 - 1,
        "rewards": torch.randn(size, generator=generator),
        "next_observations": torch.randn(size, model.observation_dim, generator=generator),
        "masks": torch.ones(size),
        "next_actions": torch.rand(size, model.action_dim, generator=generator) * 2 - 1,
        "next_action_known": torch.ones(size),
        "valid": torch.ones(size, model.action_chunk),
    }
    noise = {
        name: (torch.randn if draw.distribution == "normal" else torch.rand)(size, *draw.shape, generator=generator)
        for name, draw in model.noise_draws().items()
    }
    return model.Batch(**{name: fields[name] for name in model.Batch._fields}), model.Noise(**noise)


@pytest.mark.parametrize("name", METHODS)
def test_any_critic_goes_with_any_method(name: str, tmp_path: Path) -> None:
    """The transformer critic under entropy control, trained as a classifier: a setting, not code."""
    model = made(
        name,
        critic=partial(TransformerCritic, hidden_dim=16, head_dim=8),
        entropy_control=AttentionTemperature,
        value_loss=partial(HLGauss, low=-10.0, high=10.0),
    )
    before = model.temperature().detach().clone()
    batch, noise = drawn(model)
    losses = model.losses(batch, noise, model.inputs(0))
    assert losses.diagnostics["attention_entropy"].shape == (2, 2)
    assert losses.metrics["entropy_loss"] != 0.0
    fit(tmp_path, model, 5)
    assert not torch.equal(model.temperature(), before)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("iql", {"actor_loss": "bc"}, "model.actor_loss: expected awr or ddpgbc, found bc"),
        ("iql", {"expectile": 1.0}, "model.expectile: expected above 0 and below 1, found 1.0"),
        ("iql", {"alpha": -1.0}, "model.alpha: expected a finite number of at least 0, found -1.0"),
        ("ifql", {"tau": 0.0}, "model.tau: expected above 0 and at most 1, found 0.0"),
        ("rebrac", {"actor_period": 0}, "model.actor_period: expected at least 1, found 0"),
        ("qc", {"extraction": "best"}, "model.extraction: expected implicit or fql, found best"),
        ("qc", {"policy": FLOW_POLICY}, 'expected FlowPolicy for "fql" and BehaviourFlow for "implicit", found Flow'),
        ("qc_fql", {"policy": FLOW}, 'expected FlowPolicy for "fql" and BehaviourFlow for "implicit", found Behav'),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, **settings)


def test_noise_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.smoothing.actor_noise: expected a finite number of at least 0"):
        Smoothing(actor_noise=-0.1)
    with pytest.raises(ValueError, match=r"policy.exploration_temperature: expected a finite number of at least 0"):
        made("iql", policy=partial(GAUSSIAN, exploration_temperature=-1.0))


def test_an_extraction_that_a_method_does_not_have_is_refused() -> None:
    for name in ("iql", "rebrac"):
        with pytest.raises(ValueError, match=r"model.extraction: expected none"):
            made(name).actor("implicit")
    with pytest.raises(ValueError, match=r"model.extraction: expected implicit or behaviour_flow, found fql"):
        made("qc").actor("fql")


@pytest.mark.parametrize("policy", [FLOW, GAUSSIAN])
def test_cloning_learns_the_datas_actions(policy: Any) -> None:
    """Actions are a function of the observation; cloning finds it."""
    torch.manual_seed(0)
    model = BC(3, 2, policy=partial(policy, hidden_dims=(64, 64)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    observations = torch.randn(512, 3)
    actions = 0.6 * observations[:, :2].tanh()
    for _ in range(400):
        noise = model.Noise(torch.randn(512, 2), torch.rand(512, 1))
        optimizer.zero_grad()
        model.losses(Demonstrations(observations, actions), noise, {}).total.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.actor().act(observations, torch.randn(512, 2))
    assert (found - actions).abs().mean() < 0.1


class TestReBRAC:
    def test_an_unknown_next_action_costs_nothing(self) -> None:
        model = made("rebrac", critic_bc_coefficient=5.0)
        batch, noise = drawn(model)
        unknown = batch._replace(next_action_known=torch.zeros(8))
        free = made("rebrac", critic_bc_coefficient=0.0)
        losses = [
            m.losses(b, noise, m.inputs(0)).metrics["target_q_mean"] for m, b in ((model, unknown), (free, batch))
        ]
        assert losses[0] == losses[1]
        assert model.losses(batch, noise, model.inputs(0)).metrics["target_q_mean"] < losses[0]

    @pytest.mark.parametrize("with_metrics", [False, True])
    def test_policy_and_targets_wait_for_the_actors_update(self, with_metrics: bool) -> None:
        model = made("rebrac", actor_period=3)
        with torch.no_grad():  # so that targets have somewhere to go
            for parameter in (*model.critic.parameters(), *model.policy.parameters()):
                parameter.add_(0.1)
        batch, noise = drawn(model)
        for update in range(6):
            inputs = model.inputs(update)
            model.zero_grad()
            model.losses(batch, noise, inputs, with_metrics).total.backward()
            gradient = max(parameter.grad.abs().max().item() for parameter in model.policy.parameters())
            before = [value.clone() for value in (*model.target_critic.parameters(), *model.target_policy.parameters())]
            model.before_step(inputs)
            after = [*model.target_critic.parameters(), *model.target_policy.parameters()]
            moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
            full = update in (2, 5)
            assert (gradient > 0.0) == full
            assert all(moved) if full else not any(moved)

    def test_target_noise_is_clipped(self) -> None:
        model = made("rebrac")
        actions = torch.zeros(1, 2)
        noise = torch.tensor([[1.0, 10.0]])
        assert model.noisy(actions, noise).tolist() == [[pytest.approx(0.2), 0.5]]
        assert model.noisy(actions, noise, temperature=0.0).tolist() == [[0.0, 0.0]]


class TestQC:
    def test_invalid_rows_count_nothing_and_stay_in_the_mean(self) -> None:
        model = made("qc", action_dim=2, problem=Problem(2))
        batch, noise = drawn(model)
        valid = batch.valid.clone()
        valid[4:, 1:] = 0.0
        whole, half = (model.losses(each, noise, {}).metrics for each in (batch, batch._replace(valid=valid)))
        first = type(batch)(*(field[:4] for field in batch))
        alone = model.losses(first, type(noise)(*(field[:4] for field in noise)), {}).metrics
        assert half["td_loss"].item() == pytest.approx(alone["td_loss"].item() / 2.0, rel=1e-5)
        assert half["behaviour_flow_loss"] < whole["behaviour_flow_loss"]

    def test_the_target_takes_the_action_that_acting_would(self) -> None:
        model = made("qc", action_dim=2, problem=Problem(2))
        batch, noise = drawn(model)
        actions = model.actor().act(batch.next_observations, noise.next_action)
        values = model.target_critic(batch.next_observations, actions).values.mean(dim=-1)
        expected = (batch.rewards + model.discount * batch.masks * values).mean()
        torch.testing.assert_close(model.losses(batch, noise, {}).metrics["target_q_mean"], expected.detach())

    def test_released_decay_reaches_biases(self) -> None:
        groups = made("qc", release_decay=True).parameter_groups()
        assert all(group.decays("bias", parameter) for group in groups for parameter in group.module.parameters())
        own = made("qc", optimisation=Optimisation(weight_decay=0.1))
        groups = own.optimisation.torch_groups(own.parameter_groups())
        decaying = [parameter for group in groups if group["weight_decay"] > 0 for parameter in group["params"]]
        assert decaying
        assert all(parameter.ndim > 1 for parameter in decaying)


def test_iql_explores_with_its_standard_deviation_where_that_is_set() -> None:
    observations, noise = torch.zeros(1, 3), torch.full((1, 1), 0.25)
    mean = made("iql").actor().act(observations, noise)
    explored = made("iql", policy=partial(GAUSSIAN, acting_temperature=2.0)).actor().act(observations, noise)
    torch.testing.assert_close(explored, mean + 0.5)


def test_pictures_of_a_critic_are_left_out_where_there_is_none(tmp_path: Path) -> None:
    callbacks: list[Callback] = [QLandscape(every_n_updates=5), AttentionMap(every_n_updates=5)]
    fit(tmp_path, BC(3, 1, policy=FLOW), 5, callbacks)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("name", METHODS)
def test_every_metric_is_in_the_glossary(name: str) -> None:
    model = made(name)
    batch, noise = drawn(model)
    keys = [f"train/{key}" for key in model.losses(batch, noise, model.inputs(1)).metrics]
    assert [key for key in keys if not any(re.fullmatch(pattern, key) for pattern in glossary_patterns())] == []


def test_training_on_the_releases_windows_resumes_exactly(tmp_path: Path) -> None:
    """QC over windows that cross the ends of episodes, with rows that are not valid among them."""
    data = {"action_chunk": 3, "release_windows": True}
    whole, resumed, again = (made("qc", action_dim=3, problem=Problem(3)) for _ in range(3))
    fit(tmp_path, whole, 10, data=data)
    fit(tmp_path, resumed, 5, data=data).save_checkpoint(tmp_path / "half.ckpt")
    fit(tmp_path, again, 10, ckpt_path=tmp_path / "half.ckpt", data=data)
    for parameter, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[parameter]), parameter


def test_rebrac_resumes_exactly_between_updates_of_the_actor(tmp_path: Path) -> None:
    whole, resumed, again = (made("rebrac", actor_period=3) for _ in range(3))
    fit(tmp_path, whole, 10, updates_per_step=1)
    fit(tmp_path, resumed, 4, updates_per_step=1).save_checkpoint(tmp_path / "part.ckpt")
    fit(tmp_path, again, 10, ckpt_path=tmp_path / "part.ckpt", updates_per_step=1)
    for parameter, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[parameter]), parameter


def test_a_part_keeps_its_own_defaults_where_the_settings_default_is_another_class(tmp_path: Path) -> None:
    """`BehaviourFlow`, the default, has no LayerNorm; `FlowPolicy` has, and argument names in common."""
    trainer = fit(tmp_path, made("qc_fql"), 1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    model: Any = load_checkpoint(tmp_path / "last.ckpt")[0]
    assert (model.policy.behaviour_flow.norm_layers, model.policy.num_samples) != ([], 32)
