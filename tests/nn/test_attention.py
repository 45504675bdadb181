"""Attention and its entropy against a float64 loop, and what the last block leaves out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tql_lightning.nn.attention import EntropyAttention

TOKENS, HIDDEN, HEADS = 5, 12, 3


def reference(attention: EntropyAttention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and entropies by the definition, one query at a time, in float64."""
    weight, bias = attention.qkv.weight.double(), attention.qkv.bias.double()
    x = tokens.double()
    query, key, value = (x @ weight.T + bias).chunk(3, dim=-1)
    size = HIDDEN // HEADS
    outputs, entropies = torch.zeros_like(x), torch.zeros(len(x), HEADS, TOKENS, dtype=torch.float64)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for row in range(TOKENS):
            scores = (query[:, row, None, part] * key[..., part]).sum(-1) / math.sqrt(size)
            weights = torch.softmax(scores, dim=-1)
            outputs[:, row, part] = (weights[..., None] * value[..., part]).sum(1)
            entropies[:, head, row] = -(weights * torch.log(weights)).sum(-1)
    return outputs @ attention.out.weight.double().T + attention.out.bias.double(), entropies


@pytest.fixture
def attention() -> EntropyAttention:
    torch.manual_seed(0)
    return EntropyAttention(HIDDEN, HEADS)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(4, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))


def test_output_and_entropy_equal_the_definition(attention: EntropyAttention, tokens: Tensor) -> None:
    output, entropy = attention(tokens, with_entropy=True)
    expected_output, expected_entropy = reference(attention, tokens)
    torch.testing.assert_close(output.double(), expected_output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-5, atol=1e-6)


def test_gradients_of_both_outputs_equal_the_definition(attention: EntropyAttention, tokens: Tensor) -> None:
    x = tokens.clone().requires_grad_()
    output, entropy = attention(x, with_entropy=True)
    y = tokens.double().requires_grad_()
    expected_output, expected_entropy = reference(attention, y)
    generator = torch.Generator().manual_seed(2)
    for ours, theirs in ((output, expected_output), (entropy, expected_entropy)):
        direction = torch.randn(ours.shape, generator=generator)
        (gradient,) = torch.autograd.grad((ours * direction).sum(), x, retain_graph=True)
        (expected,) = torch.autograd.grad((theirs * direction.double()).sum(), y, retain_graph=True)
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("with_entropy", [False, True])
def test_value_only_is_the_first_row_of_the_whole(
    attention: EntropyAttention, tokens: Tensor, with_entropy: bool
) -> None:
    whole, entropy = attention(tokens, with_entropy=True)
    first, own_entropy = attention(tokens, value_only=True, with_entropy=with_entropy)
    torch.testing.assert_close(first, whole[:, :1])
    if with_entropy:
        torch.testing.assert_close(own_entropy, entropy)
    else:
        assert own_entropy is None


def test_entropy_spans_zero_to_ln_n(attention: EntropyAttention, tokens: Tensor) -> None:
    with torch.no_grad():
        attention.qkv.weight.zero_()
        _, uniform = attention(tokens, with_entropy=True)
        attention.qkv.weight.normal_(std=100.0)
        _, collapsed = attention(tokens, with_entropy=True)
    torch.testing.assert_close(uniform, torch.full_like(uniform, math.log(TOKENS)))
    assert torch.isfinite(collapsed).all()
    assert collapsed.mean() < 0.05
    assert collapsed.min() >= 0.0


def test_entropy_is_float32_under_bfloat16_autocast(attention: EntropyAttention, tokens: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, entropy = attention(tokens, with_entropy=True)
    _, expected = attention(tokens, with_entropy=True)
    assert output.dtype == torch.bfloat16
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(entropy, expected, rtol=0.02, atol=0.02)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads: expected a divisor of hidden_dim=12, found 5"):
        EntropyAttention(12, 5)
