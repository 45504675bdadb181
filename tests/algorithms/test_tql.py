"""The module in Lightning's loops; the algorithm's numbers are pinned by test_golden.py."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from tests.marks import slow_after
from tests.toy import fit, toy_chunk, toy_dataset, toy_model
from tql_lightning.algorithms.critics import frozen_values
from tql_lightning.algorithms.tql import TQL
from tql_lightning.batch import at_update
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.attention_components import HeadGate, SoftCap
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.sigma_reparam import SigmaReparam
from tql_lightning.nn.temperature import AttentionTemperature, FixedPenalty, SingleTemperature, TargetSchedule
from tql_lightning.nn.transformer import TransformerBlock
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.training.divergence import TrainingDivergedError


class KeepOutputs(Callback):
    """Keeps what every step returned."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.kept.append(outputs)


def state(model: TQL) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


def test_a_step_of_the_trainer_counts_its_updates(tmp_path: Path) -> None:
    trainer = fit(tmp_path, toy_model(), updates=12, updates_per_step=5)
    assert trainer.global_step == 12


def test_updates_are_the_same_however_they_are_chunked(tmp_path: Path) -> None:
    states = []
    for updates_per_step in (1, 4, 10):
        model = toy_model()
        fit(tmp_path, model, updates=10, updates_per_step=updates_per_step)
        states.append(state(model))
    assert_equal(states[0], states[1])
    assert_equal(states[0], states[2])


def test_every_parameter_moves_but_the_target_only_by_polyak(tmp_path: Path) -> None:
    model = toy_model(tau=1.0)
    before = state(model)
    fit(tmp_path, model, updates=1, updates_per_step=1)
    still = [name for name, value in state(model).items() if torch.equal(value, before[name])]
    # The target took the critic as it was before the step (tau = 1): the initial one, which it already was.
    assert still
    assert all(name.startswith("target_critic.") for name in still)
    assert {name for name, _ in model.named_parameters() if name.startswith("target_critic.")} == set(still)


def test_the_target_trails_the_critic_by_one_update(tmp_path: Path) -> None:
    one, two = toy_model(tau=1.0), toy_model(tau=1.0)
    fit(tmp_path, one, updates=1)
    fit(tmp_path, two, updates=2)
    assert_equal(dict(one.critic.state_dict()), dict(two.target_critic.state_dict()))


@pytest.mark.parametrize("stop", [5, 7, 10])
def test_a_run_continued_from_a_checkpoint_equals_the_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    whole = toy_model()
    fit(tmp_path, whole, updates=15)
    first = toy_model()
    fit(tmp_path, first, updates=stop).save_checkpoint(tmp_path / "stop.ckpt")
    rest = toy_model()
    fit(tmp_path, rest, updates=15, ckpt_path=tmp_path / "stop.ckpt")
    assert_equal(state(whole), state(rest))


def test_a_run_that_diverges_stops_and_names_what_is_not_finite(tmp_path: Path) -> None:
    model = toy_model(learning_rate=1e30, lr_schedule="constant")
    with pytest.raises(TrainingDivergedError, match=r"training diverged: after update \d+ .*train/td_loss"):
        fit(tmp_path, model, updates=20, log_every_n_steps=5)


def test_a_checkpoint_loads_without_arguments_or_pickle(tmp_path: Path) -> None:
    model = toy_model(normalize_q_loss=True)
    fit(tmp_path, model, updates=2).save_checkpoint(tmp_path / "model.ckpt")
    loaded = TQL.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.normalize_q_loss
    assert_equal(state(model), state(loaded))


CAPPED = partial(TransformerBlock, attention=partial(EntropyAttention, score_transform=SoftCap(20.0), gate=HeadGate))
VARIANTS: dict[str, dict[str, Any]] = {
    "parts": {"critic": partial(TransformerCritic, hidden_dim=16, head_dim=8, block=CAPPED)},
    "sigma-Reparam": {
        "critic": partial(TransformerCritic, hidden_dim=16, head_dim=8, weight_parametrisation=SigmaReparam)
    },
    "single temperature": {"entropy_control": SingleTemperature},
    "fixed penalty": {"entropy_control": partial(FixedPenalty, weight=0.1)},
    "schedule": {"entropy_control": partial(AttentionTemperature, schedule=TargetSchedule(0.1, 10))},
}


@pytest.mark.parametrize("name", slow_after(2, VARIANTS))
def test_variants_train_resume_exactly_and_load_without_arguments(name: str, tmp_path: Path) -> None:
    whole, first, rest = (toy_model(**VARIANTS[name]) for _ in range(3))
    before = state(whole)
    fit(tmp_path, whole, updates=10).save_checkpoint(tmp_path / "whole.ckpt")
    moved = state(whole)
    trained = [name for name, parameter in whole.named_parameters() if parameter.requires_grad]
    assert [name for name in trained if torch.equal(before[name], moved[name])] == []
    fit(tmp_path, first, updates=5).save_checkpoint(tmp_path / "stop.ckpt")
    fit(tmp_path, rest, updates=10, ckpt_path=tmp_path / "stop.ckpt")
    assert_equal(moved, state(rest))
    loaded = TQL.load_from_checkpoint(tmp_path / "whole.ckpt", weights_only=True)
    assert_equal(moved, state(loaded))
    assert str(loaded) == str(whole)
    if whole.temperature is not None:
        assert vars(loaded.temperature).get("schedule") == vars(whole.temperature).get("schedule")


def test_targets_move_with_the_updates_of_the_run(tmp_path: Path) -> None:
    control = partial(AttentionTemperature, targets=[(1.0, 1.0), (0.5, 0.5)], schedule=TargetSchedule(0.2, 10))
    model, outputs = toy_model(entropy_control=control), KeepOutputs()
    fit(tmp_path, model, updates=12, updates_per_step=1, callbacks=[outputs])
    first = [float(output["diagnostics"]["target_entropy"][0, 0]) for output in outputs.kept]
    assert first == pytest.approx([1.0 + 0.2 * max(0.0, 1 - update / 10) for update in range(12)])


def test_held_out_losses_of_a_checkpoint_have_the_targets_of_its_update(tmp_path: Path) -> None:
    control = partial(AttentionTemperature, targets=[(1.0, 1.0), (0.5, 0.5)], schedule=TargetSchedule(0.2, 10))
    model = toy_model(entropy_control=control)
    trainer = fit(tmp_path, model, updates=5)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    data = OfflineDataModule(toy_dataset(), batch_size=16)
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    expected = trainer.validate(model, data, verbose=False)[0]
    torch.testing.assert_close(model.current_inputs()["target_entropy"], torch.tensor([[1.1, 1.1], [0.6, 0.6]]))
    fresh = toy_model(entropy_control=control)
    found = Trainer(**settings).validate(fresh, data, tmp_path / "model.ckpt", verbose=False, weights_only=True)[0]
    assert found == expected
    loaded = TQL.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert Trainer(**settings).validate(loaded, data, verbose=False)[0] == expected


def test_the_q_term_gives_the_critic_no_gradient() -> None:
    model = toy_model()
    actions = torch.zeros(4, 1, requires_grad=True)
    frozen_values(model.critic, torch.randn(4, 3), actions).sum().backward()
    assert actions.grad is not None
    assert (actions.grad != 0).any()
    assert all(parameter.grad is None for parameter in model.critic.parameters())


@pytest.mark.parametrize("extraction", ["best_of_n", "implicit"])
def test_the_candidate_with_the_highest_smallest_head_is_taken(extraction: str) -> None:
    policy = partial(FlowPolicy, hidden_dims=(16,), flow_steps=2, num_samples=6)
    model = toy_model(extraction=extraction, policy=policy)
    observations, noise = torch.randn(4, 3), torch.randn(4, 6, 1)
    assert model.actor().noise_shape == (6, 1)
    chosen = model(observations, noise)
    for row in range(4):
        candidates = model.policy.flow_actions(observations[row].expand(6, 3), noise[row])
        values = model.critic(observations[row].expand(6, 3), candidates).values.amin(-1)
        torch.testing.assert_close(chosen[row], candidates[values.argmax()])


def test_extractions_act_within_the_bounds() -> None:
    model = toy_model()
    for extraction in ("fql", "behaviour_flow", "best_of_n", "implicit"):
        actor = model.actor(extraction)  # type: ignore[arg-type]
        actions = actor.act(torch.randn(8, 3), 5 * torch.randn(8, *actor.noise_shape))
        assert actions.shape == (8, 1)
        assert actions.abs().max() <= 1.0


def test_an_unknown_extraction_is_refused() -> None:
    with pytest.raises(
        ValueError, match="extraction: expected fql or best_of_n or implicit or behaviour_flow, found max"
    ):
        toy_model().actor("max")  # type: ignore[arg-type]


def test_dropout_spares_the_target_critic() -> None:
    model = toy_model(critic=partial(TransformerCritic, hidden_dim=16, head_dim=8, dropout=0.5)).train()
    inputs = (torch.randn(4, 3), torch.zeros(4, 1))
    assert not torch.equal(model.critic(*inputs).values, model.critic(*inputs).values)
    assert torch.equal(model.target_critic(*inputs).values, model.target_critic(*inputs).values)


def test_dropout_acts_on_the_td_loss_and_spares_the_policys_q_term() -> None:
    model = toy_model(critic=partial(TransformerCritic, hidden_dim=16, head_dim=8, dropout=0.5)).train()
    batch, noise = (at_update(part, 0) for part in toy_chunk(model))
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(model.losses(batch, noise, model.current_inputs()).metrics)
    assert found[0]["td_loss"] != found[1]["td_loss"]
    assert found[0]["q_loss"] == found[1]["q_loss"]

    def policy_gradients() -> list[torch.Tensor]:
        loss, _ = model.actor_loss(batch, noise, lambda mean: mean)
        return list(torch.autograd.grad(loss, list(model.policy.parameters())))

    dropping = policy_gradients()
    model.critic.eval()
    assert all(map(torch.equal, dropping, policy_gradients()))


def test_metrics_are_written_at_updates_with_learning_rates(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    fit(tmp_path, toy_model(), updates=20, logger=logger, log_every_n_steps=10)
    logger.save()
    series = read_metrics(tmp_path / "metrics.csv")
    assert series["train/critic_loss"][0] == [10, 20]
    assert {"train/gradient_norm/critic", "train/learning_rate/actor", "train/q_mean"} <= series.keys()
    assert any(name.startswith("val/td_loss") for name in series)


def test_a_critic_without_attention_trains_without_entropy_control(tmp_path: Path) -> None:
    model = toy_model(critic=partial(MLPCritic, hidden_dims=(16,)))
    assert model.temperature is None
    before = state(model)
    fit(tmp_path, model, updates=2)
    assert any(
        not torch.equal(value, before[name]) for name, value in model.critic.state_dict(prefix="critic.").items()
    )


def test_entropy_control_moves_the_entropy_towards_its_target(tmp_path: Path) -> None:
    measured = []
    for target, initial in ((0.4, -1.0), (1.4, 1.0)):
        control = partial(AttentionTemperature, targets=[(target, target)] * 2, form="sign", initial=initial)
        model = toy_model(entropy_control=control, learning_rate=1e-2, lr_schedule="constant")
        fit(tmp_path, model, updates=200)
        generator = torch.Generator().manual_seed(0)
        observations = torch.randn(64, 3, generator=generator)
        actions = torch.rand(64, 1, generator=generator) * 2 - 1
        measured.append(model.critic(observations, actions, with_entropy=True).attention_entropy[0].mean().item())
    assert measured[0] < measured[1] - 0.5


BAD: list[tuple[dict[str, Any], str]] = [
    ({"discount": 1.5}, "model.discount: expected between 0 and 1, found 1.5"),
    ({"tau": 0.0}, "model.tau"),
    ({"policy": partial(FlowPolicy, num_samples=0)}, "policy.num_samples: expected at least 1, found 0"),
    ({"target_aggregation": "max"}, "model.target_aggregation: expected mean or min, found max"),
    ({"gradient_clip_norm": 0.0}, "model.optimisation.gradient_clip_norm"),
    ({"extraction": "max"}, "model.extraction: expected fql or best_of_n or implicit or behaviour_flow, found max"),
    ({"lr_schedule": "cosin"}, "optimisation.lr_schedule: expected warmup_cosine or constant, found cosin"),
    ({"learning_rate": -1.0}, "optimisation.learning_rate: expected a finite number of at least 0, found -1.0"),
    ({"learning_rates": {"temperature": math.inf}}, "optimisation.learning_rates.temperature: .*found inf"),
    ({"learning_rates": {"actor": math.nan}}, "optimisation.learning_rates.actor: .*found nan"),
    ({"weight_decay": -1.0}, "model.optimisation.weight_decay"),
    ({"bc_coefficient": math.inf}, "model.bc_coefficient"),
    ({"schedule_updates": 0}, "model.optimisation.schedule_updates"),
    ({"policy": partial(FlowPolicy, flow_steps=0)}, "policy.flow_steps"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_model(**settings)
