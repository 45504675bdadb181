"""Multi-head self-attention that also returns its entropy, and its implementations (docs/algorithm.md, 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, einsum, nn
from torch.nn.functional import linear

from tql_lightning.nn.attention_components import ScoreTransform, WeightTransform
from tql_lightning.nn.chunked_attention import chunked_attention
from tql_lightning.nn.initialisation import StackedLinear, lecun_normal_
from tql_lightning.nn.linear import Linear
from tql_lightning.nn.scalar_tokens import FactoredTokens, dense

Implementation = Literal["plain", "chunked", "triton"]
HAS_TRITON = find_spec("triton") is not None
MAX_PLAIN_TOKENS = (
    128  # tokens up to which plain keeps the matrix of weights in memory, and the kernels keep it on chip
)
KERNEL_HEAD_DIM = 64
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attention_scores(products: Tensor, size: int, transform: ScoreTransform | None) -> Tensor:
    """Computes the softmax's inputs, at least in float32.

    Args:
        products: Products of queries and keys, (B, h, m, n).
        size: e, size of a head.
        transform: Function of the products over sqrt(e); None for none.
    """
    scores = (products if products.dtype == torch.float64 else products.float()) / math.sqrt(size)
    return scores if transform is None else transform(scores)


def plain_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    num_attended: int,
    with_entropy: bool,
    score_transform: ScoreTransform | None = None,
    weight_transform: WeightTransform | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Computes attention and its entropy with the whole weight matrix in memory; the reference implementation.

    Args:
        queries: (B, h, m, e).
        keys: (B, h, n, e).
        values: (B, h, n, e).
        num_attended: Number of queries, from the first on, to compute attended values for.
        with_entropy: Whether to compute the entropies of all m queries.
        score_transform: Function of the scores, before the softmax.
        weight_transform: Function of the weights, after the softmax; it does not change the entropy.

    Returns:
        Attended values (B, h, num_attended, e) and entropies (B, h, m) or None. Softmax and entropies are float32,
        or float64 for inputs in float64.
    """
    scores = attention_scores(queries @ keys.transpose(-2, -1), queries.shape[-1], score_transform)
    if with_entropy:
        log_weights = scores.log_softmax(dim=-1)
        weights = log_weights.exp()
        entropy = -(weights * log_weights).sum(dim=-1)
    else:
        weights, entropy = scores.softmax(dim=-1), None
    if num_attended < weights.shape[-2]:
        weights = weights[:, :, :num_attended]
    if weight_transform is not None:
        weights = weight_transform(weights)
    return weights.to(values.dtype) @ values, entropy


def choose_implementation(keys: Tensor, transformed: bool) -> Implementation:
    """Chooses the implementation for "auto"; never the Triton kernels, which no GPU has run yet.

    Args:
        keys: (B, h, n, e).
        transformed: Whether there is a transform of scores or weights, which only "plain" supports.
    """
    return "plain" if transformed or keys.shape[-2] <= MAX_PLAIN_TOKENS else "chunked"


def _kernels_take(queries: Tensor, keys: Tensor) -> bool:
    """Whether the Triton kernels support these sizes and number types."""
    num_tokens, size = max(queries.shape[-2], keys.shape[-2]), keys.shape[-1]
    return num_tokens <= MAX_PLAIN_TOKENS and size <= KERNEL_HEAD_DIM and keys.dtype in KERNEL_DTYPES


class EntropyAttention(nn.Module):
    """Full self-attention with one fused QKV projection and, on request, the entropy of every query.

    The entropy of query i is H_i = -sum_j A_ij log A_ij in nats, between 0 (one key takes all the
    weight) and ln n. It is computed as -sum p * log_softmax in float32: the form that stays exact as
    attention collapses (logsumexp - sum p * score loses four digits there).

    Args:
        hidden_dim: H.
        num_heads: h, a divisor of ``hidden_dim``.
        query_key_norm: Makes the normalisation of queries and of keys from the size of a head (QK-norm,
            arXiv 2302.05442); null for none.
        score_transform: Function of the scores, before the softmax; null for none.
        weight_transform: Function of the weights, after the softmax; it does not change the entropy. Null for none.
        gate: Makes the gates on the heads' outputs from (hidden_dim, num_heads); null for none.
        implementation: "plain" keeps the weight matrix in memory. "chunked" needs memory linear in the number of
            tokens. "triton" is one kernel for up to 128 tokens on NVIDIA GPUs from capability 8.0 on, not yet run on
            one. "auto" is plain up to 128 tokens and with transforms, else chunked (docs/attention.md).

    Raises:
        ValueError: ``num_heads`` does not divide ``hidden_dim``, or ``implementation`` is unknown, not installed, or
            does not support a transform.

    Examples:
        >>> attention = EntropyAttention(32, num_heads=2)
        >>> _, entropy = attention(torch.zeros(5, 4, 32), with_entropy=True)
        >>> round(entropy.mean().item(), 2)  # ln 4, as all weights are equal
        1.39
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        query_key_norm: Callable[[int], nn.Module] | None = None,
        score_transform: ScoreTransform | None = None,
        weight_transform: WeightTransform | None = None,
        gate: Callable[[int, int], nn.Module] | None = None,
        implementation: Literal["auto", "plain", "chunked", "triton"] = "auto",
    ) -> None:
        super().__init__()
        if num_heads < 1 or hidden_dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of hidden_dim={hidden_dim}, found {num_heads}")
        has_transform = score_transform is not None or weight_transform is not None
        allowed = ("auto", "plain") if has_transform else ("auto", "plain", "chunked", "triton")
        if implementation not in allowed:
            why = " with a score_transform or weight_transform" if has_transform else ""
            raise ValueError(f"attention.implementation: expected {' or '.join(allowed)}{why}, found {implementation}")
        if implementation == "triton" and not HAS_TRITON:
            raise ValueError("attention.implementation: triton is not installed; pip install 'tql-lightning[triton]'")
        self.implementation = implementation
        self.num_heads = num_heads
        self.qkv = lecun_normal_(StackedLinear(hidden_dim, hidden_dim, stacked=3))
        self.out = lecun_normal_(Linear(hidden_dim, hidden_dim))
        head_dim = hidden_dim // num_heads
        self.query_norm = None if query_key_norm is None else query_key_norm(head_dim)
        self.key_norm = None if query_key_norm is None else query_key_norm(head_dim)
        self.score_transform, self.weight_transform = score_transform, weight_transform
        self.gate = None if gate is None else gate(hidden_dim, num_heads)

    def forward(
        self, tokens: Tensor | FactoredTokens, *, value_only: bool = False, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from every token, or from [VALUE] alone, to every token.

        Args:
            tokens: (B, n, H).
            value_only: Whether to compute the output of token 0 only, with the same result.
            with_entropy: Whether to also return the entropies of all n queries.

        Returns:
            The attended tokens, (B, n, H) or (B, 1, H), and the entropies (B, h, n) in float32 or None.
        """
        if value_only:
            return self._attend_from_value(dense(tokens), with_entropy)
        projected = self.qkv(tokens) if isinstance(tokens, Tensor) else tokens.linear(self.qkv.weight, self.qkv.bias)
        queries, keys, values = self._heads(projected, stacked=3)
        queries, keys = self._normalised(queries, keys)
        attended, entropy = self._attend(queries, keys, values, queries.shape[2], with_entropy)
        return self._output(attended, tokens), entropy

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, num_attended: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the configured implementation; see `plain_attention`."""
        implementation = self.implementation
        if implementation == "auto":
            transformed = self.score_transform is not None or self.weight_transform is not None
            implementation = choose_implementation(keys, transformed)
        if implementation == "plain":
            return plain_attention(
                queries,
                keys,
                values,
                num_attended=num_attended,
                with_entropy=with_entropy,
                score_transform=self.score_transform,
                weight_transform=self.weight_transform,
            )
        if torch.is_autocast_enabled(queries.device.type):  # autocast does not reach custom operators
            dtype = torch.get_autocast_dtype(queries.device.type)
            queries, keys, values = queries.to(dtype), keys.to(dtype), values.to(dtype)
        if implementation == "chunked":
            return chunked_attention(queries, keys, values, num_attended=num_attended, with_entropy=with_entropy)
        if not _kernels_take(queries, keys):
            raise ValueError(
                f"attention.implementation: triton takes up to {MAX_PLAIN_TOKENS} tokens, "
                f"heads up to {KERNEL_HEAD_DIM} and no float64, found {tuple(keys.shape)} in {keys.dtype}; choose auto"
            )
        from tql_lightning.nn.triton_attention import triton_attention

        return triton_attention(queries, keys, values, num_attended=num_attended, with_entropy=with_entropy)

    def _attend_from_value(self, tokens: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """Attends from token 0 of (B, n, H) alone; returns (B, 1, H) and the entropies.

        A single query needs no value vectors and, without entropy, no key vectors: (q W_k) x_j and W_v (sum_j A_j x_j)
        apply each weight matrix once instead of once per token.
        """
        size, heads = self.qkv.in_features, self.num_heads
        weight, bias = self.qkv.weight, self.qkv.bias  # read once: a parametrization computes the weight on each read
        entropy = None
        if with_entropy or self.key_norm is not None:
            queries, keys = self._heads(linear(tokens, weight[: 2 * size], bias[: 2 * size]), stacked=2)
            queries, keys = self._normalised(queries, keys)
            products = queries[:, :, :1] @ keys.transpose(-2, -1)
            if with_entropy:
                _, entropy = self._attend(queries, keys, keys, num_attended=0, with_entropy=True)
        else:
            (queries,) = self._heads(linear(tokens[:, :1], weight[:size], bias[:size]), stacked=1)
            key_weight = rearrange(weight[size : 2 * size], "(h e) i -> h e i", h=heads)
            key_bias = rearrange(bias[size : 2 * size], "(h e) -> h e 1", h=heads)
            products = einsum("bhe,hei->bhi", queries[:, :, 0], key_weight) @ tokens.transpose(-2, -1)
            products = products.unsqueeze(2) + queries @ key_bias
        weights = attention_scores(products, size // heads, self.score_transform).softmax(dim=-1)
        if self.weight_transform is not None:
            weights = self.weight_transform(weights)
        value_weight = rearrange(weight[2 * size :], "(h e) i -> h e i", h=heads)
        value_bias = rearrange(bias[2 * size :], "(h e) -> h 1 e", h=heads)
        pooled = weights[:, :, 0].to(tokens.dtype) @ tokens
        attended = einsum("bhi,hei->bhe", pooled, value_weight).unsqueeze(2)
        attended = attended + (weights.sum(dim=-1, keepdim=True) * value_bias).to(attended.dtype)
        return self._output(attended, tokens), entropy

    def _heads(self, projected: Tensor, stacked: int) -> Tensor:
        """(B, n, stacked * H) -> (stacked, B, h, n, e)."""
        return rearrange(projected, "b n (s h e) -> s b h n e", s=stacked, h=self.num_heads)

    def _normalised(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Applies QK-norm, if there is one, to queries and keys (B, h, ., e)."""
        if self.query_norm is None or self.key_norm is None:
            return queries, keys
        return self.query_norm(queries), self.key_norm(keys)

    def _output(self, attended: Tensor, tokens: Tensor | FactoredTokens) -> Tensor:
        """Applies gates and output projection: attended values (B, h, queries, e) -> (B, queries, H)."""
        if self.gate is not None:
            attended = attended * self.gate(dense(tokens)[:, : attended.shape[2]])
        output: Tensor = self.out(rearrange(attended, "b h n e -> b n (h e)"))
        return output
