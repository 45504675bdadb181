"""Feed-forward layers of a transformer block: TQL's own, and SwiGLU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from tql_lightning.nn.initialisation import lecun_normal_
from tql_lightning.nn.linear import Linear


class FeedForward(nn.Sequential):
    """Drop(W2 Drop(gelu(W1 x))), gelu in its tanh form (section 2 of docs/algorithm.md); (..., H) -> (..., H).

    Args:
        hidden_dim: H.
        inner_dim: width between W1 and W2.
        dropout: probability of both dropouts.

    Examples:
        >>> FeedForward(32, 64, dropout=0.0)(torch.zeros(5, 4, 32)).shape
        torch.Size([5, 4, 32])
    """

    def __init__(self, hidden_dim: int, inner_dim: int, dropout: float) -> None:
        super().__init__(
            lecun_normal_(Linear(hidden_dim, inner_dim)),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            lecun_normal_(Linear(inner_dim, hidden_dim)),
            nn.Dropout(dropout),
        )


class SwiGLU(nn.Module):
    """Drop(W2 Drop(silu(W1 x) * W3 x)) (arXiv 2002.05202); (..., H) -> (..., H).

    Its inner width is two thirds of ``inner_dim``, so that it has as many weights as `FeedForward`.

    Args:
        hidden_dim: H.
        inner_dim: width that `FeedForward` would have.
        dropout: probability of both dropouts.

    Examples:
        >>> SwiGLU(32, 64, dropout=0.0)(torch.zeros(5, 4, 32)).shape
        torch.Size([5, 4, 32])
    """

    def __init__(self, hidden_dim: int, inner_dim: int, dropout: float) -> None:
        super().__init__()
        width = max(1, round(2 * inner_dim / 3))
        self.gate = lecun_normal_(Linear(hidden_dim, width))
        self.up = lecun_normal_(Linear(hidden_dim, width))
        self.down = lecun_normal_(Linear(width, hidden_dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        inner = self.dropout(functional.silu(self.gate(tokens)) * self.up(tokens))
        output: Tensor = self.dropout(self.down(inner))
        return output
