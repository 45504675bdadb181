"""Attention with entropy in one kernel forward and one backward, for short sequences on NVIDIA GPUs (Triton).

One program does one head of one batch element. Its whole matrix of weights stays on chip: memory is read and written
once, and grows with the number of tokens only. The backward kernel computes the weights again. Softmax, entropy and
their sums are float32; matrix products take the inputs' precision, or TF32 where torch allows it for float32.

With the environment variable TRITON_INTERPRET=1, set before Python starts, the same kernels run on the CPU.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tql_lightning.nn.attention_operator import attention_operator

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def triton_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, num_attended: int, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """See `attention.plain_attention`, without transforms.

    Raises:
        ValueError: the tensors are not on a CUDA device.
    """
    if not (queries.is_cuda or INTERPRETED):
        raise ValueError(
            f"attention.implementation: triton needs tensors on a CUDA device, found {queries.device}; choose auto"
        )
    attended, entropy = _operator(queries, keys, values, num_attended)
    return attended, entropy if with_entropy else None


@triton.jit
def _tile(matrix, strides, heads, first, num_rows, size, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """Addresses of this program's rows from ``first`` on, (ROWS, SIZE), of (B, h, num_rows, size); which exist."""
    program = tl.program_id(0).to(tl.int64)
    rows, columns = first + tl.arange(0, ROWS)[:, None], tl.arange(0, SIZE)[None, :]
    addresses = matrix + program // heads * strides[0] + program % heads * strides[1] + rows * strides[2] + columns
    return addresses, (rows < num_rows) & (columns < size)


@triton.jit
def _load(matrix, strides, heads, first, num_rows, size, ROWS: tl.constexpr, SIZE: tl.constexpr, DTYPE: tl.constexpr):
    addresses, exist = _tile(matrix, strides, heads, first, num_rows, size, ROWS, SIZE)
    return tl.load(addresses, mask=exist, other=0.0).to(DTYPE)


@triton.jit
def _store(matrix, strides, result, heads, first, num_rows, size, ROWS: tl.constexpr, SIZE: tl.constexpr):
    addresses, exist = _tile(matrix, strides, heads, first, num_rows, size, ROWS, SIZE)
    tl.store(addresses, result.to(matrix.dtype.element_ty), mask=exist)


@triton.jit
def _weights(queries, keys, num_keys, scale, KEYS: tl.constexpr, PRECISION: tl.constexpr):
    """Weights (ROWS, KEYS) and their logarithms; both are 0 in columns without a key."""
    exist = tl.arange(0, KEYS)[None, :] < num_keys
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
    scores = tl.where(exist, scores, float("-inf"))
    shifted = scores - tl.max(scores, axis=1)[:, None]
    log_weights = shifted - tl.log(tl.sum(tl.exp(shifted), axis=1))[:, None]
    return tl.exp(log_weights), tl.where(exist, log_weights, 0.0)


@triton.jit
def _forward_kernel(
    queries,
    queries_strides,
    keys,
    keys_strides,
    values,
    values_strides,
    attended,
    attended_strides,
    entropy,
    entropy_strides,
    heads,
    num_queries,
    num_keys,
    num_attended,
    size,
    scale,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    k = _load(keys, keys_strides, heads, 0, num_keys, size, KEYS, SIZE, DTYPE)
    v = _load(values, values_strides, heads, 0, num_keys, size, KEYS, SIZE, DTYPE)
    for first in range(0, num_queries, ROWS):
        q = _load(queries, queries_strides, heads, first, num_queries, size, ROWS, SIZE, DTYPE)
        weights, log_weights = _weights(q, k, num_keys, scale, KEYS, PRECISION)
        h = -tl.sum(weights * log_weights, axis=1)[:, None]
        _store(entropy, entropy_strides, h, heads, first, num_queries, 1, ROWS, 1)
        result = tl.dot(weights.to(DTYPE), v, input_precision=PRECISION)
        _store(attended, attended_strides, result, heads, first, num_attended, size, ROWS, SIZE)


@triton.jit
def _backward_kernel(
    queries,
    queries_strides,
    keys,
    keys_strides,
    values,
    values_strides,
    grad_attended,
    grad_attended_strides,
    grad_entropy,
    grad_entropy_strides,
    grad_queries,
    grad_queries_strides,
    grad_keys,
    grad_keys_strides,
    grad_values,
    grad_values_strides,
    heads,
    num_queries,
    num_keys,
    num_attended,
    size,
    scale,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    k = _load(keys, keys_strides, heads, 0, num_keys, size, KEYS, SIZE, DTYPE)
    v = _load(values, values_strides, heads, 0, num_keys, size, KEYS, SIZE, DTYPE)
    grad_k, grad_v = tl.zeros((KEYS, SIZE), tl.float32), tl.zeros((KEYS, SIZE), tl.float32)
    for first in range(0, num_queries, ROWS):
        q = _load(queries, queries_strides, heads, first, num_queries, size, ROWS, SIZE, DTYPE)
        g = _load(grad_attended, grad_attended_strides, heads, first, num_attended, size, ROWS, SIZE, DTYPE)
        h = _load(grad_entropy, grad_entropy_strides, heads, first, num_queries, 1, ROWS, 1, tl.float32)
        weights, log_weights = _weights(q, k, num_keys, scale, KEYS, PRECISION)
        grad_v += tl.dot(tl.trans(weights.to(DTYPE)), g, input_precision=PRECISION)
        # Of the loss in the weights; the entropy's other term is constant along a row and falls out with the mean.
        grad = tl.dot(g, tl.trans(v), input_precision=PRECISION) - h * log_weights
        grad_scores = weights * (grad - tl.sum(weights * grad, axis=1)[:, None]) * scale
        grad_q = tl.dot(grad_scores.to(DTYPE), k, input_precision=PRECISION)
        _store(grad_queries, grad_queries_strides, grad_q, heads, first, num_queries, size, ROWS, SIZE)
        grad_k += tl.dot(tl.trans(grad_scores.to(DTYPE)), q, input_precision=PRECISION)
    _store(grad_keys, grad_keys_strides, grad_k, heads, 0, num_keys, size, KEYS, SIZE)
    _store(grad_values, grad_values_strides, grad_v, heads, 0, num_keys, size, KEYS, SIZE)


def _forward(queries: Tensor, keys: Tensor, values: Tensor, num_attended: int) -> tuple[Tensor, Tensor]:
    attended, entropy = _empty_outputs(queries, keys, values, num_attended)
    _run(_forward_kernel, (queries, keys, values, attended, entropy), num_attended)
    return attended, entropy


def _backward(
    queries: Tensor, keys: Tensor, values: Tensor, grad_attended: Tensor, grad_entropy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = queries.new_empty(queries.shape), keys.new_empty(keys.shape), values.new_empty(values.shape)
    inputs = (queries, keys, values, grad_attended, grad_entropy)
    _run(_backward_kernel, (*inputs, *grads), num_attended=grad_attended.shape[2])
    return grads


def _run(kernel: Any, tensors: tuple[Tensor, ...], num_attended: int) -> None:
    """One program a head; tensors begin with queries (B, h, m, e) and keys (B, h, n, e)."""
    queries, keys = tensors[:2]
    batch, heads, num_queries, size = queries.shape
    # Elements of a row stand side by side; entropies have one a row.
    tensors = tuple(x if x.ndim == 3 or x.stride(-1) == 1 else x.contiguous() for x in tensors)
    with torch.cuda.device_of(queries):  # type: ignore[no-untyped-call]
        kernel[(batch * heads,)](
            *(argument for x in tensors for argument in (x, x.stride()[:3])),
            *(heads, num_queries, keys.shape[2], num_attended, size, 1.0 / math.sqrt(size)),
            **_constants(queries.dtype, keys.shape[2], size),
        )


def _constants(dtype: torch.dtype, num_keys: int, size: int) -> dict[str, Any]:
    """What the kernels are compiled for: tiles are powers of two, and at least 16 as tensor cores want them."""
    keys = max(16, triton.next_power_of_2(num_keys))
    return {
        "ROWS": 16,
        "KEYS": keys,
        "SIZE": max(16, triton.next_power_of_2(size)),
        # The interpreter has no arithmetic of bfloat16.
        "DTYPE": tl.float32 if INTERPRETED else DTYPES[dtype],
        "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        "num_warps": 4 if keys <= 64 else 8,  # so that registers hold the backward pass
    }


def _empty_outputs(queries: Tensor, _: Tensor, values: Tensor, num_attended: int) -> tuple[Tensor, Tensor]:
    """Room for attended values (B, h, num_attended, e), with a token's heads side by side, and entropies (B, h, m)."""
    batch, heads, num_queries, size = queries.shape
    attended = values.new_empty(batch, num_attended, heads, size).transpose(1, 2)
    return attended, queries.new_empty(batch, heads, num_queries, dtype=torch.float32)


_operator = attention_operator("triton_attention", _forward, _backward, _empty_outputs)
