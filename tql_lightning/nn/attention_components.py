"""Optional parts of attention: each plugs into `EntropyAttention` by itself or with the others.

Not part of TQL: what the paper and the literature offer against attention collapse, and against attention that
does nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tql_lightning.nn.initialisation import lecun_normal_


class ScoreTransform(ABC):
    """A function of the attention scores, applied before the softmax; element-wise, without parameters."""

    @abstractmethod
    def __call__(self, scores: Tensor) -> Tensor:
        """Scores (B, h, queries, n) in float32 -> the same shape."""


class WeightTransform(ABC):
    """A function of the attention weights, applied after the softmax; without parameters."""

    @abstractmethod
    def __call__(self, weights: Tensor) -> Tensor:
        """Weights (B, h, queries, n) in float32, rows sum to 1 -> the same shape; rows need not sum to 1."""


@dataclass(frozen=True)
class SoftCap(ScoreTransform):
    """Keeps scores within (-cap, cap): cap * tanh(scores / cap) (Gemma 2, arXiv 2408.00118).

    Args:
        cap: the bound; 50 in Gemma 2.

    Raises:
        ValueError: ``cap`` is not a finite number above 0.
    """

    cap: float = 50.0

    def __post_init__(self) -> None:
        if not 0.0 < self.cap < math.inf:
            raise ValueError(f"SoftCap.cap: expected a finite number above 0, found {self.cap}")

    def __call__(self, scores: Tensor) -> Tensor:
        """See `ScoreTransform`."""
        return self.cap * torch.tanh(scores / self.cap)


@dataclass(frozen=True)
class ClippedSoftmax(WeightTransform):
    """Lets attention reach exactly 0 and 1: clip((zeta - gamma) * weights + gamma, 0, 1) (arXiv 2306.12929).

    Gamma is -alpha / n, as the paper recommends, so that the setting does not depend on the number of tokens.
    The attention entropy stays that of the softmax: it lies in [0, ln n] and has a gradient where the clip has none.

    Uniform attention, from which a critic starts and to which entropy control leads, must stay open: it does for alpha
    below n / (n - 1), where (1 + alpha / n) / n > alpha / n. With more every weight of it is 0 and passes no gradient.

    Args:
        alpha: n times how far the weights are stretched below 0. The paper has 2 to 4, for sequences and scores at
            which attention is far from uniform.
        zeta: what a weight of 1 is stretched to; 1 in most of the paper.

    Raises:
        ValueError: ``alpha`` is negative, ``zeta`` below 1, or one of them not finite.
    """

    alpha: float = 0.5
    zeta: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha < math.inf:
            raise ValueError(f"ClippedSoftmax.alpha: expected at least 0 and finite, found {self.alpha}")
        if not 1.0 <= self.zeta < math.inf:
            raise ValueError(f"ClippedSoftmax.zeta: expected at least 1 and finite, found {self.zeta}")

    def __call__(self, weights: Tensor) -> Tensor:
        """See `WeightTransform`."""
        gamma = -self.alpha / weights.shape[-1]
        return ((self.zeta - gamma) * weights + gamma).clamp(0.0, 1.0)


class HeadGate(nn.Module):
    """Gated attention: every token opens or shuts each head's output by a sigmoid (arXiv 2306.12929).

    The gate of a head is a linear function of the whole token that asks ("all-heads linear" in the paper).

    Args:
        hidden_dim: H.
        num_heads: h.
        initial: how far the gates are open for a token of zeros at the start, between 0 and 1.

    Raises:
        ValueError: ``initial`` is not between 0 and 1.
    """

    def __init__(self, hidden_dim: int, num_heads: int, initial: float = 0.5) -> None:
        super().__init__()
        if not 0.0 < initial < 1.0:
            raise ValueError(f"HeadGate.initial: expected between 0 and 1, found {initial}")
        self.logits = lecun_normal_(nn.Linear(hidden_dim, num_heads))
        nn.init.constant_(self.logits.bias, math.log(initial / (1.0 - initial)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens that ask (B, queries, H) -> gates in (0, 1), (B, h, queries, 1)."""
        gates: Tensor = self.logits(tokens).sigmoid().transpose(1, 2).unsqueeze(-1)
        return gates
