"""Multi-head self-attention that also returns its entropy (sections 2 and 3 of docs/algorithm.md)."""

from __future__ import annotations

import math
from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn

from tql_lightning.nn.attention_components import ScoreTransform, WeightTransform
from tql_lightning.nn.initialisation import StackedLinear, lecun_normal_


class EntropyAttention(nn.Module):
    """Full self-attention with one fused QKV projection and, on request, the entropy of every query.

    The entropy of query i is H_i = -sum_j A_ij log A_ij in nats, between 0 (one key takes all the
    weight) and ln n. It is computed as -sum p * log_softmax in float32: the form that stays exact as
    attention collapses (logsumexp - sum p * score loses four digits there).

    Args:
        hidden_dim: H.
        num_heads: h, must divide ``hidden_dim``.
        query_key_norm: what makes, from the size of a head, the normalisation of queries and of keys
            (QK-norm, arXiv 2302.05442); null for none.
        score_transform: applied to the scores before the softmax; null for none.
        weight_transform: applied to the softmax's weights; the entropy is the softmax's. Null for none.
        gate: what makes the gates on the heads' outputs from (hidden_dim, num_heads); null for none.

    Raises:
        ValueError: ``num_heads`` does not divide ``hidden_dim``.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        query_key_norm: Callable[[int], nn.Module] | None = None,
        score_transform: ScoreTransform | None = None,
        weight_transform: WeightTransform | None = None,
        gate: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or hidden_dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of hidden_dim={hidden_dim}, found {num_heads}")
        self.num_heads = num_heads
        self.qkv = lecun_normal_(StackedLinear(hidden_dim, hidden_dim, stacked=3))
        self.out = lecun_normal_(nn.Linear(hidden_dim, hidden_dim))
        head_dim = hidden_dim // num_heads
        self.query_norm = None if query_key_norm is None else query_key_norm(head_dim)
        self.key_norm = None if query_key_norm is None else query_key_norm(head_dim)
        self.score_transform, self.weight_transform = score_transform, weight_transform
        self.gate = None if gate is None else gate(hidden_dim, num_heads)

    def forward(
        self, tokens: Tensor, *, value_only: bool = False, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from every token, or from [VALUE] alone, to every token.

        Args:
            tokens: (B, n, H).
            value_only: return the output of token 0 only; exact, it just leaves out what nobody reads.
            with_entropy: also return the entropy of all n queries.

        Returns:
            The attended tokens, (B, n, H) or (B, 1, H), and the entropies (B, h, n) in float32 or None.
        """
        queries, keys, values = self._project(tokens, num_queries=1 if value_only and not with_entropy else None)
        if self.query_norm is not None and self.key_norm is not None:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        scores = (queries @ keys.transpose(-2, -1)).float() / math.sqrt(queries.shape[-1])
        if self.score_transform is not None:
            scores = self.score_transform(scores)
        if with_entropy:
            log_weights = scores.log_softmax(dim=-1)
            weights = log_weights.exp()
            entropy = -(weights * log_weights).sum(dim=-1)
            if value_only:
                weights = weights[:, :, :1]
        else:
            weights, entropy = scores.softmax(dim=-1), None
        if self.weight_transform is not None:
            weights = self.weight_transform(weights)
        attended = weights.to(values.dtype) @ values
        if self.gate is not None:
            attended = attended * self.gate(tokens[:, :1] if value_only else tokens)
        return self.out(rearrange(attended, "b h n e -> b n (h e)")), entropy

    def _project(self, tokens: Tensor, num_queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the first ``num_queries`` tokens (None: all), keys and values of all: (B, h, ., e)."""
        if num_queries is None:
            queries, keys, values = rearrange(self.qkv(tokens), "b n (s h e) -> s b h n e", s=3, h=self.num_heads)
            return queries, keys, values
        hidden_dim = self.qkv.in_features
        weight, bias = self.qkv.weight, self.qkv.bias
        queries = nn.functional.linear(tokens[:, :num_queries], weight[:hidden_dim], bias[:hidden_dim])
        keys_values = nn.functional.linear(tokens, weight[hidden_dim:], bias[hidden_dim:])
        keys, values = rearrange(keys_values, "b n (s h e) -> s b h n e", s=2, h=self.num_heads)
        return rearrange(queries, "b n (h e) -> b h n e", h=self.num_heads), keys, values
