"""Q-Transformer's network: values of one action dimension after another (arXiv 2309.10150)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tql_lightning.nn.feedforward import FeedForward
from tql_lightning.nn.initialisation import LayerNorm, RMSNorm, StackedLinear, lecun_normal_
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.sizes import require_heads, require_sizes
from tql_lightning.nn.tokenizer import EMBEDDING_STD


class KeysAndValues(NamedTuple):
    """Cached keys and values of the tokens so far, (B, h, n, e), for later tokens to attend to."""

    keys: Tensor
    values: Tensor


class CausalBlock(nn.Module):
    """x + attention(norm x), then x + feedforward(norm x); token j attends to tokens 0 ... j.

    Args:
        hidden_dim: H.
        num_heads: h.
        inner_dim: Width of the feed-forward layer.
        layer_norm: Whether both branches normalise their input.
        query_key_norm: Whether queries and keys are normalised (QK-norm, arXiv 2302.05442).
    """

    def __init__(
        self, hidden_dim: int, num_heads: int, inner_dim: int, layer_norm: bool = True, query_key_norm: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_dim = hidden_dim // num_heads
        self.attention_norm = LayerNorm(hidden_dim) if layer_norm else nn.Identity()
        self.qkv = lecun_normal_(StackedLinear(hidden_dim, hidden_dim, stacked=3))
        self.query_norm = RMSNorm(head_dim) if query_key_norm else nn.Identity()
        self.key_norm = RMSNorm(head_dim) if query_key_norm else nn.Identity()
        self.out = lecun_normal_(nn.Linear(hidden_dim, hidden_dim))
        self.feedforward_norm = LayerNorm(hidden_dim) if layer_norm else nn.Identity()
        self.feedforward = FeedForward(hidden_dim, inner_dim, dropout=0.0)

    def forward(
        self, tokens: Tensor, past: KeysAndValues | None = None, *, with_entropy: bool = False
    ) -> tuple[Tensor, KeysAndValues, Tensor | None]:
        """Processes the first tokens, or one more after those of ``past``.

        Args:
            tokens: (B, m, H); with ``past`` (B, 1, H).
            past: Keys and values of earlier tokens.
            with_entropy: Whether to compute the entropy of every query; only without ``past``.

        Returns:
            Tokens (B, m, H); keys and values of all tokens so far; entropies in nats (B, h, m) or None.
        """
        queries, keys, values = rearrange(
            self.qkv(self.attention_norm(tokens)), "b n (s h e) -> s b h n e", s=3, h=self.num_heads
        )
        # The norms compute in their scale's number type; attention needs one type.
        queries, keys = self.query_norm(queries).to(values.dtype), self.key_norm(keys).to(values.dtype)
        if past is not None:
            keys, values = torch.cat([past.keys, keys], dim=2), torch.cat([past.values, values], dim=2)
        entropy = None
        if with_entropy:
            attended, entropy = causal_attention_with_entropy(queries, keys, values)
        else:
            attended = scaled_dot_product_attention(queries, keys, values, is_causal=past is None)
        tokens = tokens + self.out(rearrange(attended, "b h m e -> b m (h e)"))
        return tokens + self.feedforward(self.feedforward_norm(tokens)), KeysAndValues(keys, values), entropy


class AutoregressiveOutput(NamedTuple):
    """Output of an `AutoregressiveCritic`.

    Attributes:
        logits: Logits of every bin of n dimensions, at least float32, (B, n, N).
        bins: Bins given or chosen, int64 (B, n).
        attention_entropy: Entropy of every query in nats, (L, B, h, tokens); None unless requested.
    """

    logits: Tensor
    bins: Tensor
    attention_entropy: Tensor | None


class AutoregressiveCritic(nn.Module):
    """Values of each bin of action dimension i, given the state and the bins of dimensions before i.

    A causal transformer over state tokens, a start token and the bins of all but the last dimension. The i-th of the
    last n_a tokens outputs the logits of dimension i's bins; values are their sigmoids, in (0, 1).

    Args:
        observation_dim: n_s.
        action_dim: n_a.
        num_bins: N, number of bins per action dimension.
        hidden_dim: H, a multiple of ``head_dim``.
        num_layers: L.
        head_dim: Size of an attention head.
        mlp_ratio: Width of the feed-forward layers over ``hidden_dim``.
        layer_norm: Whether the blocks normalise the input of their branches.
        final_norm: Whether a LayerNorm follows the last block.
        query_key_norm: Whether queries and keys are normalised.
        state_tokens: "one" token for the whole observation, or "each" for one token per scalar.
        modality_embeddings: Whether to add a learned embedding to all state tokens, and one to all other tokens.
        initial_logit: Initial bias of every logit.

    Raises:
        ValueError: A size is out of its range; the message names it.

    Examples:
        >>> critic = AutoregressiveCritic(3, 2, num_bins=8, hidden_dim=32)
        >>> critic(torch.zeros(5, 3)).logits.shape
        torch.Size([5, 2, 8])
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        num_bins: int = 64,
        hidden_dim: int = 128,
        num_layers: int = 2,
        head_dim: int = 32,
        mlp_ratio: int = 4,
        layer_norm: bool = True,
        final_norm: bool = True,
        query_key_norm: bool = True,
        state_tokens: Literal["one", "each"] = "one",
        modality_embeddings: bool = False,
        initial_logit: float = -2.5,
    ) -> None:
        super().__init__()
        require_sizes("critic", observation_dim=observation_dim, action_dim=action_dim, hidden_dim=hidden_dim)
        require_sizes("critic", num_layers=num_layers, head_dim=head_dim, mlp_ratio=mlp_ratio)
        require_sizes("critic", least=2, num_bins=num_bins)
        require_heads(hidden_dim, head_dim)
        if state_tokens not in ("one", "each"):
            raise ValueError(f"critic.state_tokens: expected one or each, found {state_tokens}")
        self.action_dim, self.num_bins, self.num_layers = action_dim, num_bins, num_layers
        self.state_tokens = state_tokens
        self.num_state_tokens = 1 if state_tokens == "one" else observation_dim
        state_dim = observation_dim if state_tokens == "one" else 1
        self.state_projection = lecun_normal_(nn.Linear(state_dim, hidden_dim))
        self.start = _embedding(hidden_dim)
        self.chosen = _embedding(action_dim - 1, num_bins, hidden_dim) if action_dim > 1 else None
        self.position = _embedding(self.num_state_tokens + action_dim, hidden_dim)
        self.state_modality = _embedding(hidden_dim) if modality_embeddings else None
        self.action_modality = _embedding(hidden_dim) if modality_embeddings else None
        self.blocks = nn.ModuleList(
            CausalBlock(hidden_dim, hidden_dim // head_dim, mlp_ratio * hidden_dim, layer_norm, query_key_norm)
            for _ in range(num_layers)
        )
        self.final_norm = LayerNorm(hidden_dim) if final_norm else nn.Identity()
        self.output = _embedding(action_dim, num_bins, hidden_dim)
        self.output_bias = nn.Parameter(torch.full((action_dim, num_bins), initial_logit))

    def forward(
        self,
        observations: Tensor,
        bins: Tensor | None = None,
        *,
        dimensions: int | None = None,
        with_entropy: bool = False,
    ) -> AutoregressiveOutput:
        """Computes logits of every bin of every dimension, after given bins or the best bin of each earlier dimension.

        Args:
            observations: (B, n_s).
            bins: int64 (B, n_a); the last dimension's bins are not read. None to choose the best bin (the first among
                equals) of one dimension after another, in one pass with cached keys and values.
            dimensions: n, number of dimensions to choose, only without ``bins``; None for all n_a.
            with_entropy: Whether to compute attention entropies, only with ``bins``.
        """
        if bins is None:
            return self._choose(observations, self.action_dim if dimensions is None else dimensions)
        tokens = torch.cat([self._first_tokens(observations), *self._chosen_tokens(bins)], dim=1)
        entropies: list[Tensor] = []
        for block in self.blocks:
            tokens, _, entropy = block(tokens, with_entropy=with_entropy)
            if entropy is not None:
                entropies.append(entropy)
        logits = self._logits(tokens[:, self.num_state_tokens :], slice(None))
        return AutoregressiveOutput(logits, bins, torch.stack(entropies) if entropies else None)

    def _choose(self, observations: Tensor, dimensions: int) -> AutoregressiveOutput:
        tokens = self._first_tokens(observations)
        past: list[KeysAndValues | None] = [None] * self.num_layers
        bins: list[Tensor] = []
        logits: list[Tensor] = []
        for dimension in range(dimensions):
            for layer, block in enumerate(self.blocks):
                tokens, past[layer], _ = block(tokens, past[layer])
            logits.append(self._logits(tokens[:, -1:], slice(dimension, dimension + 1)))
            bins.append(logits[-1].argmax(dim=-1))
            if dimension + 1 < dimensions:
                tokens = self._chosen_token(bins[-1], dimension)
        return AutoregressiveOutput(torch.cat(logits, dim=1), torch.cat(bins, dim=1), None)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Decays matrices of linear layers, but not positions, tables and output weights."""
        return parameter.ndim == 2 and name.endswith("weight")

    def _first_tokens(self, observations: Tensor) -> Tensor:
        """Returns state tokens and the start token, (B, S + 1, H)."""
        scalars = observations.unsqueeze(1) if self.state_tokens == "one" else observations.unsqueeze(-1)
        state = self.state_projection(scalars)
        start = self.start.expand(observations.shape[0], 1, -1)
        if self.state_modality is not None and self.action_modality is not None:
            state, start = state + self.state_modality, start + self.action_modality
        return torch.cat([state, start], dim=1) + self.position[: self.num_state_tokens + 1]

    def _chosen_tokens(self, bins: Tensor) -> list[Tensor]:
        return [self._chosen_token(bins[:, i : i + 1], i) for i in range(self.action_dim - 1)]

    def _chosen_token(self, bins: Tensor, dimension: int) -> Tensor:
        """Embeds one dimension's bins, (B, 1) -> (B, 1, H)."""
        assert self.chosen is not None  # the last dimension's bin has no token
        token = self.chosen[dimension][bins]
        if self.action_modality is not None:
            token = token + self.action_modality
        return token + self.position[self.num_state_tokens + 1 + dimension]

    def _logits(self, tokens: Tensor, dimensions: slice) -> Tensor:
        """Maps tokens of some dimensions (B, i, H) to logits (B, i, N)."""
        normalised = self.final_norm(tokens).transpose(0, 1)
        products = torch.bmm(normalised, self.output[dimensions].transpose(1, 2).to(normalised.dtype)).transpose(0, 1)
        return at_least_float32(products) + self.output_bias[dimensions]


def causal_attention_with_entropy(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Computes attention in which query j attends to keys 0 ... j, and the entropy of every query.

    Args:
        queries: (B, h, n, e).
        keys: (B, h, n, e).
        values: (B, h, n, e).

    Returns:
        Attended values (B, h, n, e) and entropies in nats, (B, h, n).
    """
    scores = at_least_float32(queries @ keys.transpose(-2, -1)) / math.sqrt(queries.shape[-1])
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    log_weights = scores.masked_fill(hidden, -math.inf).log_softmax(dim=-1)
    weights = log_weights.exp()
    entropy = -(weights * log_weights.masked_fill(hidden, 0.0)).sum(dim=-1)
    return weights.to(values.dtype) @ values, entropy


def _embedding(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * EMBEDDING_STD)
