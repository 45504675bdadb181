"""Feed-forward layers with structured linear maps (arXiv 2407.09835, 2406.16450), plain and SwiGLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from tql_lightning.nn.feedforward import FeedForward, SwiGLU
from tql_lightning.nn.structured import LowRankLinear, StructuredLinear


class StructuredFeedForward(nn.Module):
    """Drop(S2 Drop(gelu(S1 x))) with structured maps S1 and S2; (..., H) -> (..., H).

    Args:
        hidden_dim: H.
        inner_dim: Width between S1 and S2.
        dropout: Probability of both dropouts.
        linear: Makes a map from (inputs, outputs).
        dense_blocks: Number of first blocks that keep the dense `FeedForward`; 1 as published, half of TQL's two.

    Examples:
        >>> StructuredFeedForward(32, 64, dropout=0.0)(torch.zeros(5, 4, 32)).shape
        torch.Size([5, 4, 32])
    """

    dense: ClassVar[type[FeedForward | SwiGLU]] = FeedForward

    def __init__(
        self,
        hidden_dim: int,
        inner_dim: int,
        dropout: float,
        linear: Callable[[int, int], StructuredLinear] = LowRankLinear,
        dense_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.sizes, self.dense_blocks = (hidden_dim, inner_dim, dropout), dense_blocks
        outputs, inputs = self.widths(inner_dim)
        self.up = linear(hidden_dim, outputs)
        self.down = linear(inputs, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def widths(inner_dim: int) -> tuple[int, int]:
        """Returns the number of outputs of S1 and of inputs of S2."""
        return inner_dim, inner_dim

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        inner = self.dropout(functional.gelu(self.up(tokens), approximate="tanh"))
        output: Tensor = self.dropout(self.down(inner))
        return output

    def in_block(self, position: int) -> nn.Module:
        """Returns the layer of a block, counted from 0: a dense one in the first ``dense_blocks``, else this one."""
        return self.dense(*self.sizes) if position < self.dense_blocks else self


class StructuredSwiGLU(StructuredFeedForward):
    """Drop(S2 Drop(silu(u) * v)) with (u, v) = S1 x and structured maps S1 and S2; (..., H) -> (..., H).

    Its inner width is two thirds of ``inner_dim``, as in `SwiGLU`. The ``num_blocks`` of the maps must divide it;
    ``mlp_ratio`` 3 makes it 2 H.

    Args:
        hidden_dim: H.
        inner_dim: Width that `StructuredFeedForward` would have.
        dropout: Probability of both dropouts.
        linear: Makes a map from (inputs, outputs).
        dense_blocks: Number of first blocks that keep the dense `SwiGLU`; 1 as published.

    Examples:
        >>> StructuredSwiGLU(32, 64, dropout=0.0)(torch.zeros(5, 4, 32)).shape
        torch.Size([5, 4, 32])
    """

    dense = SwiGLU

    @staticmethod
    def widths(inner_dim: int) -> tuple[int, int]:
        """See `StructuredFeedForward.widths`."""
        width = max(1, round(2 * inner_dim / 3))
        return 2 * width, width

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        gate, values = self.up(tokens).chunk(2, dim=-1)
        output: Tensor = self.dropout(self.down(self.dropout(functional.silu(gate) * values)))
        return output
