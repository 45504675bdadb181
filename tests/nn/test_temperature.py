"""Temperatures, their targets and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tql_lightning.algorithms import losses
from tql_lightning.nn.temperature import AttentionTemperature, FixedPenalty, SingleTemperature, TargetSchedule


def test_the_recipe_is_the_papers() -> None:
    temperature = AttentionTemperature(num_layers=3, num_tokens=43)
    high = 0.8 * math.log(43)
    torch.testing.assert_close(temperature.targets, torch.tensor([[high] * 2, [high] * 2, [high - 0.5] * 2]))


@pytest.mark.parametrize("initial", [1.0, 0.3, 5.0])
def test_both_forms_start_at_the_initial_value(initial: float) -> None:
    for form in ("exp", "sign"):
        temperature = AttentionTemperature(2, 10, initial=initial, form=form)
        torch.testing.assert_close(temperature(), torch.full((2, 2), initial))


def test_the_sign_form_may_be_negative_and_the_weight_is_clipped() -> None:
    temperature = AttentionTemperature(1, 10, initial=-0.25, form="sign", minimum=-0.2, maximum=0.3)
    torch.testing.assert_close(temperature(), torch.full((1, 2), -0.25))
    torch.testing.assert_close(temperature.entropy_weight(), torch.full((1, 2), -0.2))
    assert not temperature.entropy_weight().requires_grad


@pytest.mark.parametrize("form", ["exp", "sign"])
def test_it_rises_under_the_target_and_falls_above_it(form: Any) -> None:
    temperature = AttentionTemperature(1, 10, targets=[(1.0, 1.0)], form=form)
    optimizer = torch.optim.SGD(temperature.parameters(), lr=0.1)
    losses.temperature_loss(torch.tensor([[0.5, 1.5]]), temperature(), temperature.targets).backward()
    optimizer.step()
    low, high = temperature().flatten().tolist()
    assert low > 1.0 > high


def test_a_single_temperature_weighs_everything_alike_and_follows_the_mean_error() -> None:
    temperature = SingleTemperature(2, 10, targets=[(1.0, 1.0), (0.5, 0.5)])
    assert [parameter.numel() for parameter in temperature.parameters()] == [1]
    assert temperature().shape == temperature.entropy_weight().shape == (2, 2)
    entropy = torch.tensor([[0.5, 1.2], [0.1, 0.3]])
    losses.temperature_loss(entropy, temperature(), temperature.targets).backward()
    assert temperature.raw.grad is not None
    torch.testing.assert_close(temperature.raw.grad.sum(), (entropy - temperature.targets).mean())


def test_a_fixed_penalty_has_no_target_and_nothing_to_learn() -> None:
    penalty = FixedPenalty(2, 10, weight=0.3)
    assert list(penalty.parameters()) == []
    assert penalty.target_entropy(0) is None
    torch.testing.assert_close(penalty.entropy_weight(), torch.full((2, 2), 0.3))


@pytest.mark.parametrize(
    ("form", "offsets"),
    [("linear", [0.4, 0.2, 0.0, 0.0]), ("cosine", [0.4, 0.2, 0.0, 0.0]), ("constant", [0.4, 0.4, 0.0, 0.0])],
)
def test_scheduled_targets_start_off_and_arrive(form: Any, offsets: list[float]) -> None:
    schedule = TargetSchedule(start_offset=0.4, updates=100, form=form)
    temperature = AttentionTemperature(1, 10, targets=[(1.0, 1.5)], schedule=schedule)
    for update, offset in zip((0, 50, 100, 1000), offsets, strict=True):
        torch.testing.assert_close(temperature.target_entropy(update), torch.tensor([[1.0 + offset, 1.5 + offset]]))
    quarter = {"linear": 0.3, "cosine": 0.2 * (1 + math.cos(math.pi / 4)), "constant": 0.4}[form]
    assert schedule.offset(25) == pytest.approx(quarter)


def test_without_a_schedule_targets_are_constant() -> None:
    temperature = AttentionTemperature(1, 10, targets=[(1.0, 1.5)])
    assert temperature.target_entropy(0) is temperature.target_entropy(10_000) is temperature.targets


@pytest.mark.parametrize("weight", [0.0, math.inf, math.nan])
def test_a_penalty_without_effect_or_bound_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"FixedPenalty.weight: expected a finite number other than 0"):
        FixedPenalty(2, 10, weight)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"targets": [(1.0, 1.0)]}, "expected 2 rows .*found"),
    ({"targets": [(1.0,), (1.0,)]}, "expected 2 rows"),
    ({"targets": [1.0, 1.0]}, r"expected 2 rows .*below ln 10 = 2.303 nats; found \[1.0, 1.0\]"),
    ({"targets": 1.0}, "expected 2 rows .*below ln 10 = 2.303 nats; found 1.0"),
    ({"targets": [(1.0, 1.0), 1.0]}, "expected 2 rows .*below ln 10 = 2.303 nats"),
    ({"targets": [("high", "low"), (1.0, 1.0)]}, "expected 2 rows .*below ln 10 = 2.303 nats; found .*high"),
    ({"targets": [(1.0, None), (1.0, 1.0)]}, "layer 0, others: .*below ln 10 = 2.303 nats, found nan"),
    ({"targets": [(1.0, 3.0), (1.0, 1.0)]}, "layer 0, others: .*below ln 10 = 2.303 nats, found 3.0"),
    ({"targets": [(1.0, 1.0), (-1.0, 1.0)]}, "layer 1, value: expected above 0"),
    ({"targets": [(1.0, 1.0), (math.nan, 1.0)]}, "layer 1, value: .*found nan"),
    ({"target_scale": 1.5}, "layer 0, value: .*lower target_scale"),
    ({"last_layer_offset": -3.0}, "layer 1, value"),
    ({"initial": 0.0}, "initial: form 'exp' needs a temperature above 0"),
    ({"initial": 0.0, "form": "sign"}, "initial: form 'sign' never leaves 0"),
    ({"form": "tanh"}, "form: expected 'exp' or 'sign', found 'tanh'"),
    (
        {"targets": [(2.0, 1.0), (1.0, 1.0)], "schedule": TargetSchedule(0.5, 10)},
        "at the start of the schedule, layer 0, value: .*below ln 10 = 2.303 nats, found 2.5",
    ),
    ({"initial": math.nan}, "initial: expected a finite temperature, found nan"),
    ({"initial": math.inf}, "initial: expected a finite temperature, found inf"),
    ({"minimum": math.nan}, "minimum: expected less than maximum=100.0, found nan"),
    ({"schedule": TargetSchedule(math.nan, 10)}, "at the start of the schedule, layer 0, value: .*found nan"),
    ({"minimum": 1.0, "maximum": 1.0}, "minimum: expected less than maximum"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_refused_with_the_reachable_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionTemperature(**{"num_layers": 2, "num_tokens": 10, **settings})
