"""Products by oneDNN: equal to torch's up to rounding, in value and gradient, and counted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from tql_lightning.nn.linear import FEWEST_PRODUCTS, Linear
from tql_lightning.nn.sigma_reparam import SigmaReparam

ROWS, IN, OUT = 43, 40, 160
LARGE = 1 + FEWEST_PRODUCTS // (ROWS * IN * OUT)


def results(layer: nn.Module, inputs: Tensor, weights: Tensor) -> list[Tensor]:
    """Outputs of a layer and the gradients of a weighted sum of them, those that there are."""
    inputs = inputs.clone().requires_grad_()
    output = layer(inputs)
    (output * weights).sum().backward()
    return [each for each in (output, inputs.grad, *(part.grad for part in layer.parameters())) if each is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("reparametrised", [True, False])
def test_large_products_differ_from_those_in_float64_no_more_than_torchs(
    bias: bool, frozen: bool, reparametrised: bool
) -> None:
    torch.manual_seed(0)
    layer = Linear(IN, OUT, bias=bias)
    plain = nn.Linear(IN, OUT, bias=bias)
    plain.load_state_dict(layer.state_dict())
    for each in (layer, plain):
        if reparametrised:
            torch.manual_seed(1)
            parametrize.register_parametrization(each, "weight", SigmaReparam(each))
        each.requires_grad_(not frozen)
    inputs, weights = torch.randn(LARGE, ROWS, IN), torch.randn(LARGE, ROWS, OUT)
    exact = results(copy.deepcopy(plain).double(), inputs.double(), weights.double())
    ours, torchs = results(layer, inputs, weights), results(plain, inputs, weights)
    assert len(ours) == len(torchs) == len(exact) >= 2
    for our, other, truth in zip(ours, torchs, exact, strict=True):
        size = truth.abs().max()
        assert (our - truth).abs().max() <= max(2.0 * (other - truth).abs().max(), 1e-6 * size)


@pytest.mark.parametrize("case", ["small", "float64", "autocast"])
def test_other_products_are_torchs_to_the_bit(case: str) -> None:
    torch.manual_seed(0)
    dtype = torch.float64 if case == "float64" else torch.float32
    layer = Linear(IN, OUT, dtype=dtype)
    inputs = torch.randn(1 if case == "small" else LARGE, ROWS, IN, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        torchs = nn.functional.linear(inputs, layer.weight, layer.bias)
        torch.testing.assert_close(layer(inputs), torchs, rtol=0, atol=0)


def test_inputs_need_not_be_contiguous() -> None:
    torch.manual_seed(0)
    layer, inputs = Linear(IN, OUT), torch.randn(ROWS, LARGE, IN)
    expected = layer(inputs.transpose(0, 1).contiguous())
    torch.testing.assert_close(layer(inputs.transpose(0, 1)), expected, rtol=0, atol=0)


def test_operations_of_large_products_are_counted() -> None:
    layer, inputs = Linear(IN, OUT), torch.zeros(LARGE, ROWS, IN, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(inputs).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * LARGE * ROWS * IN * OUT
