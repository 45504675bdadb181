"""Attention with entropy in memory linear in the number of tokens, forward and backward, on any device.

Weights are computed block by block and never stored; the backward pass recomputes them. A block holds whole rows, so
that the entropy is the plain -sum p * log_softmax, which stays exact as attention collapses. Methods that store less (a
running logsumexp and E[k], as with FlexAttention) compute the entropy as a difference of large numbers, which loses
digits there. On CPUs FlexAttention has neither a backward pass nor a logsumexp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tql_lightning.nn.attention_operator import attention_operator

# Elements in one block of weights: few enough for a CPU's cache, enough to fill a GPU.
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}
DEFAULT_BLOCK_ELEMENTS = 2**22


def chunked_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, num_attended: int, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Computes `attention.plain_attention` without transforms; without entropy, by torch's own attention."""
    if not with_entropy:
        return scaled_dot_product_attention(queries[:, :, :num_attended], keys, values), None
    attended, entropy = _operator(queries, keys, values, num_attended)
    return attended, entropy


def _forward(queries: Tensor, keys: Tensor, values: Tensor, num_attended: int) -> tuple[Tensor, Tensor]:
    attended, entropy = _empty_outputs(queries, keys, values, num_attended)
    q, k, v = queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)
    flat_attended, flat_entropy = attended.flatten(0, 1), entropy.flatten(0, 1)
    for heads, rows in _blocks(q, k):
        log_weights = _log_weights(q[heads, rows], k[heads])
        weights = log_weights.exp()
        torch.linalg.vecdot(weights, log_weights, out=flat_entropy[heads, rows]).neg_()
        wanted = slice(rows.start, min(rows.stop, num_attended))
        if wanted.start < wanted.stop:
            flat_attended[heads, wanted] = weights[:, : wanted.stop - wanted.start].to(v.dtype) @ v[heads]
    return attended, entropy


def _backward(
    queries: Tensor, keys: Tensor, values: Tensor, grad_attended: Tensor, grad_entropy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    num_attended = grad_attended.shape[2]
    q, k, v = queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)
    grad_attended, grad_entropy = grad_attended.flatten(0, 1), grad_entropy.flatten(0, 1)
    grad_q = q.new_empty(q.shape)  # contiguous, as the operator's fake kernel declares, whatever the queries' strides
    # Accumulate over blocks of queries in the softmax's precision.
    grad_k, grad_v = (x.new_zeros(x.shape, dtype=grad_entropy.dtype) for x in (k, v))
    for heads, rows in _blocks(q, k):
        log_weights = _log_weights(q[heads, rows], k[heads])
        weights = log_weights.exp()
        # Gradient in the weights: grad . v_j from the attended values, -grad * log_weights from the entropy, whose
        # other term is constant along a row and cancels when the mean is subtracted.
        grad = log_weights.mul_(-grad_entropy[heads, rows, None])
        wanted = slice(rows.start, min(rows.stop, num_attended))
        if wanted.start < wanted.stop:
            count, grad_rows = wanted.stop - wanted.start, grad_attended[heads, wanted]
            grad[:, :count] += grad_rows @ v[heads].mT
            grad_v[heads] += weights[:, :count].to(v.dtype).mT @ grad_rows
        grad -= torch.linalg.vecdot(weights, grad).unsqueeze(-1)
        grad_scores = grad.mul_(weights).div_(math.sqrt(q.shape[-1])).to(q.dtype)
        grad_q[heads, rows] = grad_scores @ k[heads]
        grad_k[heads] += grad_scores.mT @ q[heads, rows]
    return (
        grad_q.view(queries.shape),
        grad_k.to(keys.dtype).view(keys.shape),
        grad_v.to(values.dtype).view(values.shape),
    )


def _log_weights(queries: Tensor, keys: Tensor) -> Tensor:
    """Computes log attention weights, (heads, rows, e), (heads, n, e) -> (heads, rows, n), at least in float32."""
    scores = queries @ keys.mT
    if scores.dtype != torch.float64:
        scores = scores.float()
    return scores.div_(math.sqrt(queries.shape[-1])).log_softmax(dim=-1)


def _blocks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields slices of heads and rows that cover (heads, rows, e): many heads at a time, or part of one head's rows."""
    (num_heads, num_rows), num_keys = queries.shape[:2], keys.shape[1]
    budget = BLOCK_ELEMENTS.get(queries.device.type, DEFAULT_BLOCK_ELEMENTS)
    row_step = max(1, min(num_rows, budget // num_keys))
    head_step = max(1, budget // (row_step * num_keys))
    for head in range(0, num_heads, head_step):
        for row in range(0, num_rows, row_step):
            yield slice(head, min(head + head_step, num_heads)), slice(row, min(row + row_step, num_rows))


def _empty_outputs(queries: Tensor, _: Tensor, values: Tensor, num_attended: int) -> tuple[Tensor, Tensor]:
    """Allocates attended values (B, h, num_attended, e) and entropies (B, h, m)."""
    batch, heads, num_queries, size = queries.shape
    accumulated = torch.float64 if queries.dtype == torch.float64 else torch.float32
    return (
        values.new_empty(batch, heads, num_attended, size),
        queries.new_empty(batch, heads, num_queries, dtype=accumulated),
    )


_operator = attention_operator("chunked_attention", _forward, _backward, _empty_outputs)
