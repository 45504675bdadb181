"""Optional parts of `EntropyAttention`, each usable alone or with the others.

They are not part of TQL. The paper and the literature propose them against attention collapse, or for heads that need
to do nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, einsum, nn

from tql_lightning.nn.initialisation import TRUNCATED_STD


class ScoreTransform(ABC):
    """An element-wise function of the attention scores, applied before the softmax; without parameters."""

    @abstractmethod
    def __call__(self, scores: Tensor) -> Tensor:
        """Maps scores (B, h, queries, n) in float32 to the same shape."""


class WeightTransform(ABC):
    """A function of the attention weights, applied after the softmax; without parameters."""

    @abstractmethod
    def __call__(self, weights: Tensor) -> Tensor:
        """Maps weights (B, h, queries, n) in float32, whose rows sum to 1, to the same shape; then rows need not."""


@dataclass(frozen=True)
class SoftCap(ScoreTransform):
    """Keeps scores within (-cap, cap): cap * tanh(scores / cap) (Gemma 2, arXiv 2408.00118).

    Args:
        cap: Bound of the scores; 50 in Gemma 2.

    Raises:
        ValueError: ``cap`` is not a finite number above 0.

    Examples:
        >>> SoftCap(cap=10.0)(torch.tensor([1000.0]))
        tensor([10.])
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

    Gamma is -alpha / n, as the paper recommends, so that alpha does not depend on the number of tokens.
    The attention entropy stays that of the softmax: it lies in [0, ln n] and has a gradient where the clip has none.

    Keep alpha below n / (n - 1): only then are the weights of uniform attention, (1 + alpha / n) / n - alpha / n, above
    0. A critic starts near uniform attention and entropy control leads to it; weights of 0 there pass no gradient.

    Args:
        alpha: Distance that the weights are stretched below 0, times n. The authors' scripts use 3.2 (gamma -0.025 at
            128 tokens) for BERT and 12 at 512 tokens for OPT, whose attention is far from uniform.
        zeta: Value that a weight of 1 is stretched to; 1 in most of the paper.

    Raises:
        ValueError: ``alpha`` is negative, ``zeta`` is below 1, or either is not finite.

    Examples:
        >>> ClippedSoftmax(alpha=0.5)(torch.tensor([0.9, 0.1]))
        tensor([0.8750, 0.0000])
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


GateWeights = Literal["lecun", "torch"]


class HeadGate(nn.Module):
    """Gated attention: a sigmoid of the query token scales each head's output (arXiv 2306.12929).

    The gate of a head is a linear function of all features of the query token ("all-heads linear" in the paper, which
    uses it for OPT-1.3B): h (H + 1) weights.

    Args:
        hidden_dim: H.
        num_heads: h.
        initial: Initial gate of a token of zeros, between 0 and 1.
        weights: Initial weights: "lecun" as in the other layers, or "torch", the smaller ones of the authors' code,
            uniform with standard deviation 1 / sqrt(3 fan-in).

    Raises:
        ValueError: ``initial`` is not between 0 and 1, or ``weights`` is unknown.

    Examples:
        >>> HeadGate(32, num_heads=2)(torch.zeros(5, 4, 32)).shape
        torch.Size([5, 2, 4, 1])
    """

    def __init__(self, hidden_dim: int, num_heads: int, initial: float = 0.5, weights: GateWeights = "lecun") -> None:
        super().__init__()
        self.logits = nn.Linear(hidden_dim, num_heads)
        _initialise(self.logits.weight, hidden_dim, weights)
        nn.init.constant_(self.logits.bias, _logit(initial))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps query tokens (B, queries, H) to gates in (0, 1), (B, h, queries, 1)."""
        gates: Tensor = self.logits(tokens).sigmoid().transpose(1, 2).unsqueeze(-1)
        return gates


class SliceGate(nn.Module):
    """Gated attention whose gate of a head is a linear function of the head's own slice of the query token.

    Head j reads slice j of the H features, e = H / h of them: h (e + 1) weights. The authors of arXiv 2306.12929 use
    this form for OPT-125M and 350M, with these initial values.

    Args:
        hidden_dim: H, a multiple of ``num_heads``.
        num_heads: h.
        initial: See `HeadGate`.
        weights: See `HeadGate`.

    Raises:
        ValueError: See `HeadGate`.

    Examples:
        >>> SliceGate(32, num_heads=2)(torch.zeros(5, 4, 32)).shape
        torch.Size([5, 2, 4, 1])
    """

    def __init__(self, hidden_dim: int, num_heads: int, initial: float = 0.25, weights: GateWeights = "torch") -> None:
        super().__init__()
        head_dim = hidden_dim // num_heads
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim))
        _initialise(self.weight, head_dim, weights)
        self.bias = nn.Parameter(torch.full((num_heads,), _logit(initial)))

    def forward(self, tokens: Tensor) -> Tensor:
        """See `HeadGate`."""
        slices = rearrange(tokens, "b q (h e) -> b h q e", h=len(self.bias))
        logits = einsum("bhqe,he->bhq", slices, self.weight) + self.bias[:, None]
        return logits.sigmoid().unsqueeze(-1)


class SliceMLPGate(nn.Module):
    """Gated attention whose gate of a head is a small MLP, e -> e / 4 -> 1 with relu, of the head's slice of the token.

    The authors of arXiv 2306.12929 use this form for BERT: h (e e / 4 + 2 e / 4 + 1) weights.

    Args:
        hidden_dim: H, a multiple of ``num_heads``.
        num_heads: h.
        initial: See `HeadGate`.
        weights: See `HeadGate`.

    Raises:
        ValueError: See `HeadGate`.

    Examples:
        >>> SliceMLPGate(32, num_heads=2)(torch.zeros(5, 4, 32)).shape
        torch.Size([5, 2, 4, 1])
    """

    without_decay = frozenset({"inner_bias"})

    def __init__(self, hidden_dim: int, num_heads: int, initial: float = 0.5, weights: GateWeights = "torch") -> None:
        super().__init__()
        head_dim = hidden_dim // num_heads
        inner_dim = max(1, head_dim // 4)
        self.inner_weight = nn.Parameter(torch.empty(num_heads, inner_dim, head_dim))
        _initialise(self.inner_weight, head_dim, weights)
        self.inner_bias = nn.Parameter(torch.zeros(num_heads, inner_dim))
        self.weight = nn.Parameter(torch.empty(num_heads, inner_dim))
        _initialise(self.weight, inner_dim, weights)
        self.bias = nn.Parameter(torch.full((num_heads,), _logit(initial)))

    def forward(self, tokens: Tensor) -> Tensor:
        """See `HeadGate`."""
        slices = rearrange(tokens, "b q (h e) -> b h q e", h=len(self.bias))
        inner = (einsum("bhqe,hie->bhqi", slices, self.inner_weight) + self.inner_bias[:, None]).relu()
        logits = einsum("bhqi,hi->bhq", inner, self.weight) + self.bias[:, None]
        return logits.sigmoid().unsqueeze(-1)


def _initialise(weight: Tensor, fan_in: int, weights: GateWeights) -> None:
    """Initialises the weights of a gate, in place."""
    if weights not in get_args(GateWeights):
        raise ValueError(f"gate.weights: expected {' or '.join(get_args(GateWeights))}, found {weights}")
    if weights == "lecun":
        std = 1.0 / math.sqrt(fan_in) / TRUNCATED_STD
        nn.init.trunc_normal_(weight, std=std, a=-2.0 * std, b=2.0 * std)
    else:
        nn.init.uniform_(weight, -1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in))


def _logit(initial: float) -> float:
    if not 0.0 < initial < 1.0:
        raise ValueError(f"gate.initial: expected between 0 and 1, found {initial}")
    return math.log(initial / (1.0 - initial))
