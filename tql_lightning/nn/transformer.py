"""Pre-norm transformer whose last block computes only what the [VALUE] token needs (section 2 of docs/algorithm.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.feedforward import FeedForward
from tql_lightning.nn.initialisation import LayerNorm
from tql_lightning.nn.scalar_tokens import ScalarTokens, dense, normalise

Norm = Callable[[int], nn.Module]


class TransformerBlock(nn.Module):
    """x + Drop(attention(norm x)), then x + feedforward(norm x).

    Args:
        hidden_dim: H.
        num_heads: h.
        inner_dim: Width of the feed-forward layer.
        dropout: Probability of every dropout.
        norm: Makes a normalisation of tokens from their size.
        attention: Makes the attention from (hidden_dim, num_heads).
        feedforward: Makes the feed-forward layer from (hidden_dim, inner_dim, dropout).

    Examples:
        >>> block = TransformerBlock(32, num_heads=2, inner_dim=64, dropout=0.0)
        >>> tokens, entropy = block(torch.zeros(5, 4, 32), value_only=False, with_entropy=True)
        >>> tokens.shape
        torch.Size([5, 4, 32])
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        inner_dim: int,
        dropout: float,
        norm: Norm = LayerNorm,
        attention: Callable[[int, int], EntropyAttention] = EntropyAttention,
        feedforward: Callable[[int, int, float], nn.Module] = FeedForward,
    ) -> None:
        super().__init__()
        self.attention_norm = norm(hidden_dim)
        self.attention = attention(hidden_dim, num_heads)
        self.attention_output = self.branch_output(norm, hidden_dim)
        self.attention_dropout = nn.Dropout(dropout)
        self.feedforward_norm = norm(hidden_dim)
        self.feedforward = feedforward(hidden_dim, inner_dim, dropout)
        self.feedforward_output = self.branch_output(norm, hidden_dim)

    def forward(
        self, tokens: Tensor | ScalarTokens, *, value_only: bool, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, n, H) -> (B, n, H), or (B, 1, H) with ``value_only``; entropies (B, h, n) or None."""
        attended, entropy = self.attention(
            normalise(self.attention_norm, tokens), value_only=value_only, with_entropy=with_entropy
        )
        residual = dense(tokens)[:, :1] if value_only else dense(tokens)
        tokens = residual + self.attention_dropout(self.attention_output(attended))
        return tokens + self.feedforward_output(self.feedforward(self.feedforward_norm(tokens))), entropy

    def branch_output(self, norm: Norm, hidden_dim: int) -> nn.Module:
        """Makes the module applied to a branch's output (B, n, H) before the sum; here the identity."""
        return nn.Identity()


class SandwichBlock(TransformerBlock):
    """A block that also normalises the outputs of attention and feed-forward layer (sandwich norm, arXiv 2105.13290).

    x + Drop(norm(attention(norm x))), then x + norm(feedforward(norm x)); arguments as of `TransformerBlock`.

    Examples:
        >>> block = SandwichBlock(32, num_heads=2, inner_dim=64, dropout=0.0)
        >>> tokens, entropy = block(torch.zeros(5, 4, 32), value_only=True, with_entropy=True)
        >>> tokens.shape
        torch.Size([5, 1, 32])
    """

    def branch_output(self, norm: Norm, hidden_dim: int) -> nn.Module:
        """A norm of its own for each branch."""
        return norm(hidden_dim)


@runtime_checkable
class PlacedPart(Protocol):
    """A part of a block that depends on the block's position, such as `StructuredFeedForward`."""

    def in_block(self, position: int) -> nn.Module:
        """Returns the part for the block at a position, counted from 0: this part or another."""


Block = Callable[[int, int, int, float, Norm], TransformerBlock]


class Transformer(nn.Module):
    """L blocks over the tokens and a final norm; returns the [VALUE] token.

    Args:
        hidden_dim: H.
        num_heads: h.
        num_layers: L.
        inner_dim: Width of the feed-forward layers.
        dropout: Probability of every dropout.
        norm: Makes every normalisation of tokens.
        block: Makes a block from (hidden_dim, num_heads, inner_dim, dropout, norm).
        weight_parametrisation: Makes, from a linear layer of a block, the function from the stored weight to the
            effective one; None for the stored weight.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        num_layers: int,
        inner_dim: int,
        dropout: float,
        norm: Norm = LayerNorm,
        block: Block = TransformerBlock,
        weight_parametrisation: Callable[[nn.Linear], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(hidden_dim, num_heads, inner_dim, dropout, norm) for _ in range(num_layers))
        for position, made in enumerate(self.blocks):
            _place(made, position)
        self.final_norm = norm(hidden_dim)
        if weight_parametrisation is not None:
            for layer in [module for module in self.blocks.modules() if isinstance(module, nn.Linear)]:
                parametrize.register_parametrization(layer, "weight", weight_parametrisation(layer))

    def forward(self, tokens: Tensor | ScalarTokens, *, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """(B, n, H) -> the [VALUE] token (B, H) and the entropy of every query (L, B, h, n) or None."""
        entropies: list[Tensor] = []
        for layer, block in enumerate(self.blocks, start=1):
            tokens, entropy = block(tokens, value_only=layer == len(self.blocks), with_entropy=with_entropy)
            if entropy is not None:
                entropies.append(entropy)
        return self.final_norm(dense(tokens)[:, 0]), torch.stack(entropies) if entropies else None


def _place(block: nn.Module, position: int) -> None:
    """Replaces each `PlacedPart` of a block by the one for its position."""
    for name, part in list(block.named_children()):
        if isinstance(part, PlacedPart):
            setattr(block, name, part.in_block(position))
