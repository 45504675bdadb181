"""Tokens kept as factors are the tokens that LayerNorm and linear layers would make of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tql_lightning.nn.initialisation import LayerNorm
from tql_lightning.nn.scalar_tokens import FactoredTokens, ScalarTokens, normalise

TOKENS, HIDDEN, OUT = 4, 6, 5


def scalar_tokens(dtype: torch.dtype = torch.float64) -> ScalarTokens:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, TOKENS), (TOKENS, HIDDEN), (TOKENS, HIDDEN))
    scalars, directions, offsets = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    directions[0] = 0.0  # as of [VALUE]
    return ScalarTokens(*(tensor.requires_grad_() for tensor in (scalars, directions, offsets)))


def layers(dtype: torch.dtype = torch.float64) -> tuple[LayerNorm, nn.Linear]:
    torch.manual_seed(0)
    norm, linear = LayerNorm(HIDDEN).to(dtype), nn.Linear(HIDDEN, OUT).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, linear


def gradients(output: Tensor, tokens: ScalarTokens, norm: LayerNorm, linear: nn.Linear) -> tuple[Tensor, ...]:
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(output)
    return torch.autograd.grad((output * direction).sum(), [*tokens, *norm.parameters(), *linear.parameters()])


def test_normalised_and_projected_they_are_what_the_dense_tokens_become() -> None:
    tokens, (norm, linear) = scalar_tokens(), layers()
    factored = normalise(norm, tokens)
    assert isinstance(factored, FactoredTokens)
    torch.testing.assert_close(factored.dense(), norm(tokens.dense()))
    ours, dense = factored.linear(linear.weight, linear.bias), linear(norm(tokens.dense()))
    torch.testing.assert_close(ours, dense)
    for one, other in zip(gradients(ours, tokens, norm, linear), gradients(dense, tokens, norm, linear), strict=True):
        torch.testing.assert_close(one, other)


def test_digits_are_kept_where_offset_and_scalar_cancel() -> None:
    """Tokens close to zero: their scalars undo the part of the offset that lies along the direction."""
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(1, 64, generator=generator)
    offsets = -directions + 0.02 * torch.randn(1, 64, generator=generator)
    tokens = ScalarTokens(1.0 + 0.01 * torch.randn(8, 1, generator=generator), directions, offsets)
    norm = LayerNorm(64)
    made = normalise(norm, tokens).dense()
    exact = norm.double()(ScalarTokens(*(tensor.double() for tensor in tokens)).dense())
    assert (made - exact).abs().max() < 3e-5  # from x^2 d.d + 2 x d.o + o.o it would be 2e-4


CASES = {  # scale of scalars, of directions, of offsets
    "usual": (1.0, 1.0, 0.03),
    "large": (1e4, 1.0, 0.03),
    "tiny": (1e-6, 1.0, 0.03),
    "constant": (0.0, 1.0, 0.03),
    "no direction": (1.0, 0.0, 0.03),
    "nothing": (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("scales", CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-11), (torch.float32, 2e-6), (torch.bfloat16, 0.02), (torch.float16, 0.004)],
)
def test_extreme_tokens_are_as_exact_as_layer_norm_in_every_number_type(
    scales: tuple[float, ...], dtype: torch.dtype, tolerance: float
) -> None:
    """Against float64, value and gradients of directions, offsets, weight and bias, of their largest entry."""
    shapes = ((32, TOKENS), (TOKENS, 64), (TOKENS, 64))
    generator = torch.Generator().manual_seed(3)
    parts = [s * torch.randn(shape, generator=generator) for s, shape in zip(scales, shapes, strict=True)]
    results = []
    for number in (dtype, torch.float64):
        norm, linear = LayerNorm(64).to(number), nn.Linear(64, OUT).to(number)
        linear.load_state_dict({"weight": torch.ones(OUT, 64).cumsum(1) / 64, "bias": torch.ones(OUT)})
        tokens = ScalarTokens(*(part.to(dtype).to(number).requires_grad_() for part in parts))
        if number == dtype:
            output = normalise(norm, tokens).linear(linear.weight, linear.bias)
            assert output.dtype == normalise(norm, tokens).dense().dtype == dtype
        else:
            output = linear(norm(tokens.dense()))
        results.append([output, *gradients(output, tokens, norm, linear)[1:]])  # of scalars: huge ones have none
    largest_gradient = max(gradient.abs().max() for gradient in results[1][1:])
    for made, exact in zip(*results, strict=True):
        largest = exact.abs().max() if made is results[0][0] else largest_gradient
        assert (made.double() - exact).abs().max() <= tolerance * largest


def test_other_normalisations_get_dense_tokens() -> None:
    norm = nn.RMSNorm(HIDDEN).double()
    tokens = scalar_tokens()
    torch.testing.assert_close(normalise(norm, tokens), norm(tokens.dense()))


def test_under_bfloat16_they_are_made_in_full_precision() -> None:
    tokens, (norm, linear) = scalar_tokens(torch.float32), layers(torch.float32)
    expected = linear(norm(tokens.dense()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = normalise(norm, tokens).linear(linear.weight, linear.bias)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, expected)
