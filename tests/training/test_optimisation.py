"""Parameter groups, learning rates and clipping; AdamW's own numbers are pinned by test_golden.py."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import fit, toy_model
from tql_lightning.algorithms.tql import TQL


def test_only_matrices_decay_and_every_parameter_has_one_group() -> None:
    model = toy_model()
    optimizer = model.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
    groups = {group["name"]: group for group in optimizer.param_groups}
    names = {parameter: name for name, parameter in model.named_parameters()}
    decaying = [names[p] for g in groups.values() if g["weight_decay"] > 0 for p in g["params"]]
    assert all(name.endswith("weight") and "norm" not in name and "tokenizer" not in name for name in decaying)
    assert any("qkv" in name for name in decaying)
    grouped = [names[parameter] for group in groups.values() for parameter in group["params"]]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trained)
    assert [names[parameter] for parameter in groups["temperature"]["params"]] == ["temperature.raw"]


def test_temperatures_learn_at_the_critics_rate_or_their_own() -> None:
    for own, expected in ((None, 1e-3), (5e-2, 5e-2)):
        model = toy_model(learning_rate=1e-3, learning_rates={} if own is None else {"temperature": own})
        rates = {group.name: model.optimisation.peak(group.name) for group in model.parameter_groups()}
        assert (rates["critic"], rates["temperature"]) == (1e-3, expected)


def test_learning_rates_warm_up_fall_and_end_before_the_run_does() -> None:
    model = toy_model(warmup_updates=10, schedule_updates=100)
    factor = model.optimisation.factor
    assert factor(0) == pytest.approx(0.01)
    assert factor(5) == pytest.approx(0.505)
    assert factor(10) == pytest.approx(1.0)
    assert factor(50) == pytest.approx(0.55)
    assert factor(90) == pytest.approx(0.1)
    assert factor(200) == pytest.approx(0.1)


def test_a_run_shorter_than_the_warm_up_only_warms_up() -> None:
    model = toy_model(warmup_updates=10_000, schedule_updates=50)
    assert model.optimisation.factor(49) == pytest.approx(0.01 + 0.99 * 49 / 10_000)
    assert model.optimisation.factor(10_000) == pytest.approx(0.1)


def test_gradients_of_each_network_are_clipped_on_their_own(tmp_path: Path) -> None:
    norms: list[dict[str, float]] = []

    class Clipped(TQL):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            super().on_before_optimizer_step(optimizer)
            sides = {"critic": [self.critic, self.temperature], "actor": [self.policy]}
            norms.append(
                {
                    name: float(
                        torch.nn.utils.get_total_norm(
                            [p.grad for part in parts for p in part.parameters() if p.grad is not None]  # type: ignore[union-attr]
                        )
                    )
                    for name, parts in sides.items()
                }
            )

    reference = toy_model()
    model = toy_model(Clipped, critic=partial(type(reference.critic), hidden_dim=32), gradient_clip_norm=0.01)
    fit(tmp_path, model, updates=2, updates_per_step=1)
    assert norms == [pytest.approx({"critic": 0.01, "actor": 0.01}, rel=1e-3)] * 2


def test_a_continued_run_follows_its_own_learning_rates_and_weight_decay(tmp_path: Path) -> None:
    fit(tmp_path, toy_model(), updates=5).save_checkpoint(tmp_path / "stop.ckpt")
    changed = toy_model(learning_rate=1e-5, learning_rates={"actor": 2e-5}, weight_decay=0.5)
    before = torch.load(tmp_path / "stop.ckpt", weights_only=True)["state_dict"]
    trainer = fit(tmp_path, changed, updates=6, ckpt_path=tmp_path / "stop.ckpt")
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    factor = changed.optimisation.factor(6)
    assert groups["critic"]["lr"] == pytest.approx(1e-5 * factor)
    assert groups["actor_no_decay"]["lr"] == pytest.approx(2e-5 * factor)
    assert (groups["critic"]["weight_decay"], groups["critic_no_decay"]["weight_decay"]) == (0.5, 0.0)
    name = "critic.heads.0.0.weight"
    assert (changed.state_dict()[name] - before[name]).abs().max() < 5e-5


class PlainAdam(TQL):
    """An optimizer of its own, without a schedule."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([each for each in self.parameters() if each.requires_grad], lr=1e-3)


class TwoOptimizers(TQL):
    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters()) for part in (self.critic, self.policy)]


class CriticAlone(TQL):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.critic.parameters())


class Plateau(TQL):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([each for each in self.parameters() if each.requires_grad])
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def test_an_optimizer_of_a_subclass_trains_every_network(tmp_path: Path) -> None:
    model = toy_model(PlainAdam)
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    fit(tmp_path, model, 5, log_every_n_steps=5)
    assert [name for name, weight in model.named_parameters() if name in before and weight.equal(before[name])] == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (TwoOptimizers, r"TwoOptimizers.configure_optimizers: expected one optimizer .*, found Adam, Adam; change"),
        (CriticAlone, r"expected every trainable parameter, found none of policy\.\S+, which would never move"),
        (Plateau, r"at most one schedule that steps without a metric, found Adam, ReduceLROnPlateau"),
    ],
)
def test_optimizers_of_a_subclass_that_updates_cannot_use_are_refused(
    kind: type[TQL], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, toy_model(kind), 1)
