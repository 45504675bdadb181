"""Temperatures, their targets and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tql_lightning import losses
from tql_lightning.nn.temperature import AttentionTemperature


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


BAD: list[tuple[dict[str, Any], str]] = [
    ({"targets": [(1.0, 1.0)]}, "expected 2 rows .*found"),
    ({"targets": [(1.0,), (1.0,)]}, "expected 2 rows"),
    ({"targets": [(1.0, 3.0), (1.0, 1.0)]}, "layer 0, others: .*below ln 10 = 2.303 nats, found 3.0"),
    ({"targets": [(1.0, 1.0), (-1.0, 1.0)]}, "layer 1, value: expected above 0"),
    ({"targets": [(1.0, 1.0), (math.nan, 1.0)]}, "layer 1, value: .*found nan"),
    ({"target_scale": 1.5}, "layer 0, value: .*lower target_scale"),
    ({"last_layer_offset": -3.0}, "layer 1, value"),
    ({"initial": 0.0}, "initial: form 'exp' needs a temperature above 0"),
    ({"initial": 0.0, "form": "sign"}, "initial: form 'sign' never leaves 0"),
    ({"form": "tanh"}, "form: expected 'exp' or 'sign', found 'tanh'"),
    ({"minimum": 1.0, "maximum": 1.0}, "minimum: expected less than maximum"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_refused_with_the_reachable_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionTemperature(**{"num_layers": 2, "num_tokens": 10, **settings})
