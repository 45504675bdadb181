"""Pre-LayerNorm transformer whose last block computes only what the [VALUE] token needs (spec section 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.initialisation import LAYER_NORM_EPS, lecun_normal_


class TransformerBlock(nn.Module):
    """x + Drop(attention(LN x)), then x + Drop(W2 Drop(gelu(W1 LN x))); gelu in its tanh form.

    Args:
        hidden_dim: H.
        num_heads: h.
        mlp_ratio: width of the feed-forward layer over H.
        dropout: probability of the three dropouts.
    """

    def __init__(self, hidden_dim: int, num_heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)
        self.attention = EntropyAttention(hidden_dim, num_heads)
        self.attention_dropout = nn.Dropout(dropout)
        self.feedforward_norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)
        self.feedforward = nn.Sequential(
            lecun_normal_(nn.Linear(hidden_dim, mlp_ratio * hidden_dim)),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            lecun_normal_(nn.Linear(mlp_ratio * hidden_dim, hidden_dim)),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: Tensor, *, value_only: bool, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """(B, n, H) -> (B, n, H), or (B, 1, H) with ``value_only``; entropies (B, h, n) or None."""
        attended, entropy = self.attention(
            self.attention_norm(tokens), value_only=value_only, with_entropy=with_entropy
        )
        residual = tokens[:, :1] if value_only else tokens
        tokens = residual + self.attention_dropout(attended)
        return tokens + self.feedforward(self.feedforward_norm(tokens)), entropy


class Transformer(nn.Module):
    """L blocks over the tokens and a final LayerNorm; returns the [VALUE] token.

    Args:
        hidden_dim: H.
        num_heads: h.
        num_layers: L.
        mlp_ratio: width of the feed-forward layers over H.
        dropout: probability of every dropout.
    """

    def __init__(self, hidden_dim: int, num_heads: int, num_layers: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(hidden_dim, num_heads, mlp_ratio, dropout) for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)

    def forward(self, tokens: Tensor, *, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """(B, n, H) -> the [VALUE] token (B, H) and the entropy of every query (L, B, h, n) or None."""
        entropies: list[Tensor] = []
        for layer, block in enumerate(self.blocks, start=1):
            tokens, entropy = block(tokens, value_only=layer == len(self.blocks), with_entropy=with_entropy)
            if entropy is not None:
                entropies.append(entropy)
        return self.final_norm(tokens[:, 0]), torch.stack(entropies) if entropies else None
