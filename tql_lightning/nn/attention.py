"""Multi-head self-attention that also returns its entropy (spec sections 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Callable

from einops import rearrange
from torch import Tensor, einsum, nn
from torch.nn.functional import linear

from tql_lightning.nn.attention_components import ScoreTransform, WeightTransform
from tql_lightning.nn.initialisation import StackedLinear, lecun_normal_
from tql_lightning.nn.scalar_tokens import FactoredTokens, dense


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
        self, tokens: Tensor | FactoredTokens, *, value_only: bool = False, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from every token, or from [VALUE] alone, to every token.

        Args:
            tokens: (B, n, H).
            value_only: return the output of token 0 only; exact, it just leaves out what nobody reads.
            with_entropy: also return the entropy of all n queries.

        Returns:
            The attended tokens, (B, n, H) or (B, 1, H), and the entropies (B, h, n) in float32 or None.
        """
        if value_only:
            return self._attend_from_value(dense(tokens), with_entropy)
        projected = self.qkv(tokens) if isinstance(tokens, Tensor) else tokens.linear(self.qkv.weight, self.qkv.bias)
        queries, keys, values = self._heads(projected, stacked=3)
        scores = self._scores(queries, keys)
        if with_entropy:
            log_weights = scores.log_softmax(dim=-1)
            weights = log_weights.exp()
            entropy = -(weights * log_weights).sum(dim=-1)
        else:
            weights, entropy = scores.softmax(dim=-1), None
        if self.weight_transform is not None:
            weights = self.weight_transform(weights)
        return self._output(weights.to(values.dtype) @ values, tokens), entropy

    def _attend_from_value(self, tokens: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """Attends from token 0 of (B, n, H) alone; returns (B, 1, H) and the entropies.

        A single query needs no value vectors and, where no entropy is asked for, no key vectors: in (q W_k) x_j and
        W_v (sum_j A_j x_j) the weight matrices stand next to what there is only one of.
        """
        size, heads = self.qkv.in_features, self.num_heads
        weight, bias = self.qkv.weight, self.qkv.bias  # once: a reparametrised weight is computed when it is read
        entropy = None
        if with_entropy or self.key_norm is not None:
            queries, keys = self._heads(linear(tokens, weight[: 2 * size], bias[: 2 * size]), stacked=2)
            scores = self._scores(queries[:, :, :1], keys)
            if with_entropy:
                log_weights = self._scores(queries, keys).log_softmax(dim=-1)
                entropy = -(log_weights.exp() * log_weights).sum(dim=-1)
        else:
            (queries,) = self._heads(linear(tokens[:, :1], weight[:size], bias[:size]), stacked=1)
            key_weight = rearrange(weight[size : 2 * size], "(h e) i -> h e i", h=heads)
            key_bias = rearrange(bias[size : 2 * size], "(h e) -> h e 1", h=heads)
            products = einsum("bhe,hei->bhi", queries[:, :, 0], key_weight) @ tokens.transpose(-2, -1)
            scores = self._scaled(products.unsqueeze(2) + queries @ key_bias)
        weights = scores.softmax(dim=-1)
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

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """What the softmax is taken of, in float32: (B, h, ., e), (B, h, n, e) -> (B, h, ., n)."""
        if self.query_norm is not None and self.key_norm is not None:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        return self._scaled(queries @ keys.transpose(-2, -1))

    def _scaled(self, products: Tensor) -> Tensor:
        """Products of queries and keys as scores, in float32."""
        scores = products.float() / math.sqrt(self.qkv.in_features // self.num_heads)
        return scores if self.score_transform is None else self.score_transform(scores)

    def _output(self, attended: Tensor, tokens: Tensor | FactoredTokens) -> Tensor:
        """What the heads attended, (B, h, queries, e), through gates and output projection: (B, queries, H)."""
        if self.gate is not None:
            attended = attended * self.gate(dense(tokens)[:, : attended.shape[2]])
        output: Tensor = self.out(rearrange(attended, "b h n e -> b n (h e)"))
        return output
