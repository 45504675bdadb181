"""Every implementation of attention with entropy: values and gradients of both outputs against float64.

Here plain and chunked; the same tests run the kernels through Triton's interpreter in `test_triton_attention.py`, and
on a GPU where there is one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.nn.attention_reference import Attention, assert_equals_reference, assert_sound, inputs, reference, run
from tql_lightning.nn import chunked_attention as chunked
from tql_lightning.nn.attention import plain_attention

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
NAMES = ["triton"] if INTERPRETED else ["plain", "chunked", "small chunks", *(["triton"] if DEVICE == "cuda" else [])]
few_examples = settings(
    max_examples=3 if INTERPRETED else 10,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
shapes = {
    "batch": st.integers(1, 2),
    "heads": st.integers(1, 2),
    "tokens": st.integers(1, 70),
    "size": st.integers(1, 40),
}


@pytest.fixture(scope="module", params=NAMES)
def attention(request: pytest.FixtureRequest) -> Iterator[Attention]:
    if request.param == "triton":
        from tql_lightning.nn.triton_attention import triton_attention

        yield triton_attention
    elif request.param == "plain":
        yield plain_attention
    else:
        with pytest.MonkeyPatch.context() as patch:
            if request.param == "small chunks":  # heads in threes, or a few rows of one head: neither divides
                patch.setitem(chunked.BLOCK_ELEMENTS, DEVICE, 170)
            yield chunked.chunked_attention


def tensors(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return tuple(x.to(DEVICE) for x in inputs(*shape, scale=scale, dtype=dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 7, 43, 128])
def test_values_and_gradients_of_both_outputs_equal_float64(attention: Attention, tokens: int) -> None:
    assert_equals_reference(attention, tensors(1, 3, tokens, 32), tolerance=4e-6)


def test_one_attending_query_and_the_entropies_of_all(attention: Attention) -> None:
    qkv = tensors(1, 2, 23, 8)
    assert_equals_reference(attention, qkv, num_attended=1, tolerance=4e-6)
    (first, entropy), _ = run(attention, qkv, num_attended=1)
    (whole, same_entropy), _ = run(attention, qkv)
    torch.testing.assert_close(first, whole[:, :, :1], rtol=1e-6, atol=1e-7)
    assert torch.equal(entropy, same_entropy)
    assert_equals_reference(attention, qkv, num_attended=0, tolerance=4e-6)


def test_fewer_queries_than_keys(attention: Attention) -> None:
    q, k, v = tensors(2, 2, 21, 8)
    assert_equals_reference(attention, (q[:, :, :5], k, v), tolerance=4e-6)


def test_without_entropy_the_attended_values_are_the_same(attention: Attention) -> None:
    qkv = tensors(1, 3, 23, 8)
    attended, entropy = attention(*qkv, num_attended=23, with_entropy=False)
    (expected, _), _ = run(attention, qkv)
    assert entropy is None
    torch.testing.assert_close(attended, expected, rtol=1e-5, atol=1e-6)


@few_examples
@given(**shapes)
def test_random_shapes_equal_float64(attention: Attention, batch: int, heads: int, tokens: int, size: int) -> None:
    assert_equals_reference(attention, tensors(batch, heads, tokens, size), tolerance=5e-6)


@few_examples
@given(**shapes, scale=st.sampled_from([1e-4, 30.0, 1e4]), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_extreme_scores_give_sound_numbers(
    attention: Attention, batch: int, heads: int, tokens: int, size: int, scale: float, dtype: torch.dtype
) -> None:
    assert_sound(attention, tensors(batch, heads, tokens, size, scale=scale, dtype=dtype))


@pytest.mark.parametrize("size", [4, 16])
def test_scores_of_ten_thousand_of_either_sign(attention: Attention, size: int) -> None:
    q, k, v = tensors(1, 2, 19, size)
    assert_sound(attention, (1e4 * q.sign(), k.sign() / math.sqrt(size), v))
    assert_sound(attention, (torch.full_like(q, -1e4), torch.ones_like(k), v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_cost_what_rounding_costs(attention: Attention, dtype: torch.dtype) -> None:
    qkv = tensors(1, 2, 43, 32, dtype=dtype)
    (attended, entropy), gradients = run(attention, qkv)
    assert attended.dtype == dtype
    assert entropy.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients} == {dtype}
    assert_equals_reference(attention, qkv, tolerance=0.02)


def test_entropy_stays_exact_as_attention_collapses(attention: Attention) -> None:
    """One key 60 above the others, two that tie, two 2 apart: scores are exact in float32, so errors are the softmax's.

    The bound is 5e-7 nats for the entropy and 1e-6 for its gradient per unit of score. The difference of
    logsumexp and the mean score, which needs less memory, misses it.
    """
    others = torch.linspace(-2.0, 2.0, 9).round(decimals=0)
    scores = torch.stack(
        [torch.cat([torch.tensor(top), others[len(top) :]]) for top in ([60.0], [60.0, 60.0], [60.0, 58.0])]
    )
    k = torch.zeros(3, 1, 9, 4)
    k[:, 0, :, 0] = scores
    q = torch.zeros(3, 1, 9, 4)
    q[..., 0] = 2.0  # over sqrt(4)
    qkv = tuple(x.to(DEVICE) for x in (q, k, torch.ones_like(k)))
    (_, entropy), gradients = run(attention, qkv)
    (_, expected), expected_gradients = run(reference, tuple(x.double() for x in qkv))
    assert (entropy - expected).abs().max().item() < 5e-7
    assert expected[:, 0, 0].tolist() == pytest.approx([0.0, math.log(2), 0.365335], abs=1e-5)
    for ours, theirs in zip(gradients[3:], expected_gradients[3:], strict=True):
        assert (ours - theirs).abs().max().item() < 1e-6 * max(1.0, k.abs().max().item())
    by_difference = scores.logsumexp(-1) - (scores.softmax(-1) * scores).sum(-1)
    assert (by_difference - expected[:, 0, 0].cpu()).abs().max().item() > 1e-6


@pytest.mark.skipif(INTERPRETED, reason="the kernels have no float64")
@pytest.mark.parametrize("attention", ["plain", "chunked", "small chunks"], indirect=True)
def test_gradients_in_double_precision_are_exact(attention: Attention) -> None:
    qkv = tuple(x.detach().requires_grad_() for x in tensors(2, 2, 5, 3, dtype=torch.float64))
    for num_attended in (1, 5):
        call = partial(attention, num_attended=num_attended, with_entropy=True)
        assert torch.autograd.gradcheck(call, qkv)
    (_, entropy), _ = run(attention, qkv)
    assert entropy.dtype == torch.float64
    assert_equals_reference(attention, qkv, tolerance=1e-13)


def test_gradients_may_be_broadcast_and_values_may_be_reused(attention: Attention) -> None:
    """A sum's gradient has strides of 0, and one tensor may be queries, keys and values at once."""
    x = tensors(2, 2, 11, 8)[0].detach().requires_grad_()
    attended, entropy = attention(x, x, x, num_attended=11, with_entropy=True)
    assert entropy is not None
    (ours,) = torch.autograd.grad(attended.sum() + entropy.sum(), x)
    y = x.detach().double().requires_grad_()
    attended, entropy = reference(y, y, y, num_attended=11, with_entropy=True)
    (expected,) = torch.autograd.grad(attended.sum() + entropy.sum(), y)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
