"""Entropy control per layer of causal attention."""

from __future__ import annotations

import math

import pytest
import torch

from tql_lightning.nn.layer_temperature import LayerTemperature


def test_losses_are_means_over_layers_of_normalised_entropies() -> None:
    control = LayerTemperature(2, targets=[0.75, 0.5], initial=2.0)
    entropy = torch.tensor([[0.0, math.log(2), math.log(3)], [0.0, 0.0, 0.5 * math.log(3)]]).view(2, 1, 1, 3)
    found = control.losses(entropy)
    means = [2.0 / 3.0, 0.5 / 3.0]
    torch.testing.assert_close(found.entropy, torch.tensor(means))
    assert found.entropy_loss.item() == pytest.approx(-2.0 * sum(means) / 2)
    assert found.temperature_loss.item() == pytest.approx(2.0 * (means[0] - 0.75 + means[1] - 0.5) / 2)


def test_the_weight_of_the_entropy_is_clipped_and_the_temperature_is_not() -> None:
    control = LayerTemperature(1, initial=8.0, maximum=3.0, normalize=False)
    found = control.losses(torch.ones(1, 2, 1, 4))
    assert found.entropy_loss.item() == pytest.approx(-3.0)
    assert found.temperature_loss.item() == pytest.approx(8.0 * 0.25)


def test_each_loss_moves_its_own_part() -> None:
    control, entropy = LayerTemperature(1), torch.rand(1, 2, 1, 3, requires_grad=True)
    found = control.losses(entropy)
    found.entropy_loss.backward()
    assert entropy.grad is not None
    assert control.raw.grad is None
    entropy.grad = None
    found.temperature_loss.backward()
    assert entropy.grad is None
    assert control.raw.grad is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": [0.7]}, r"targets: expected 2, one per layer, found \[0.7\]"),
        ({"initial": 0.0}, "initial: expected a finite temperature above 0, found 0.0"),
        ({"minimum": 1.0, "maximum": 1.0}, "minimum: expected less than maximum=1.0, found 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerTemperature(2, **settings)  # type: ignore[arg-type]
