"""Feed-forward layer with learned rational activations (Kolmogorov-Arnold Transformer, arXiv 2409.10594)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

Shape = Literal["identity", "swish", "gelu", "gelu_release"]
Init = Literal["variance", "release"]

# Numerator a_0 .. a_5 and denominator b_1 .. b_4 from the authors' release. The largest error on [-3, 3] is 1.2e-6 for
# "swish". For gelu the release now has "gelu_release", with an error of 1.46: it was fitted for the denominator
# 1 + |b_1 x + ... + b_4 x^4|, which the release's own kernels do not use. "gelu" is an older set; its error is 0.0041.
COEFFICIENTS: dict[Shape, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "identity": ((0.0, 1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
    "swish": (
        (3.05488e-07, 0.5000008, 0.24999784, 0.053266283, 0.0058030346, 0.0002751961),
        (-4.111555e-06, 0.10652899, -1.2690008e-06, 0.0005502331),
    ),
    "gelu": (
        (-0.0012423594, 0.5080497, 0.41586363, 0.1302272, 0.0243559, 0.0029028396),
        (-0.066750154, 0.17927647, 0.037466828, 1.656161e-10),
    ),
    "gelu_release": (
        (-0.00153969, 0.51692873, 0.44075826, 0.0972553, -0.00884418, -0.00378675),
        (-0.14171056, -0.06481231, -0.0444695, 0.01283776),
    ),
}
RELEASE_STD = 0.02


def rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """F(x) = (a_0 + a_1 x + ... + a_5 x^5) / (1 + |b_1| |x| + ... + |b_4| |x|^4), which has no poles.

    Computes in float32 (float64 for inputs in float64). The backward pass recomputes everything from x. It takes +1 as
    the derivative of |b_i| and |x| at 0: with 0, as in `torch.abs`, a b_i that starts at 0 would never move.

    Args:
        x: (..., C), split into G groups of consecutive channels.
        numerator: a, (6,), shared by all groups.
        denominator: b, (G, 4), one row per group; G divides C.

    Returns:
        F(x), (..., C), in the number type of x.
    """
    grouped = rearrange(x, "... (g c) -> ... g c", g=denominator.shape[0])
    output: Tensor = _Rational.apply(grouped, numerator, denominator)  # type: ignore[no-untyped-call]
    return output.flatten(-2)


class _Rational(torch.autograd.Function):
    """`rational` of x (..., G, C / G)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        value, a, b = _at_least_float32(x, numerator, denominator)
        return (_polynomial(value, a.unbind()) / _denominator(value.abs(), b)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, numerator, denominator = ctx.saved_tensors
        value, a, b = _at_least_float32(x, numerator, denominator)
        magnitude, coefficients = value.abs(), _columns(b.abs())
        d = _denominator(magnitude, b)
        ratio = _polynomial(value, a.unbind()) / d
        slope = _polynomial(value, [i * each for i, each in enumerate(a.unbind())][1:])
        d_slope = _sign(value) * _polynomial(magnitude, [i * each for i, each in enumerate(coefficients, start=1)])

        over_d = gradient.to(value.dtype) / d
        grad_x = over_d * (slope - ratio * d_slope)
        rows = [dim for dim in range(x.ndim) if dim != x.ndim - 2]
        grad_a = torch.stack([term.sum() for term in _times_powers(over_d, value, len(a))])
        grad_b = torch.stack(
            [-term.sum(rows) for term in _times_powers(over_d * ratio * magnitude, magnitude, b.shape[1])], dim=-1
        )
        return grad_x.to(x.dtype), grad_a.to(numerator.dtype), (_sign(b) * grad_b).to(denominator.dtype)


def _at_least_float32(x: Tensor, *coefficients: Tensor) -> list[Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return [tensor.to(dtype) for tensor in (x, *coefficients)]


def _sign(x: Tensor) -> Tensor:
    """-1 below 0, else +1."""
    return 1.0 - 2.0 * (x < 0).to(x.dtype)


def _columns(b: Tensor) -> list[Tensor]:
    """(G, 4) -> four of (G, 1), which broadcast against (..., G, C / G)."""
    return list(b.unsqueeze(-1).unbind(1))


def _denominator(magnitude: Tensor, b: Tensor) -> Tensor:
    return 1.0 + magnitude * _polynomial(magnitude, _columns(b.abs()))


def _polynomial(x: Tensor, coefficients: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """c_0 + c_1 x + c_2 x^2 + ... by Horner's scheme."""
    result = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def _times_powers(factor: Tensor, x: Tensor, count: int) -> Iterator[Tensor]:
    """Yields factor, factor x, ..., factor x^(count - 1)."""
    for _ in range(count):
        yield factor
        factor = factor * x


class GroupRational(nn.Module):
    """A learned rational function for each group of channels, (..., C) -> (..., C); see `rational`.

    Args:
        num_features: C.
        num_groups: G, a divisor of C.
        shape: Initial function; "gelu_release" is the release's set for gelu, which does not fit it (see the source).

    Raises:
        ValueError: ``num_groups`` does not divide ``num_features``, or ``shape`` is unknown.
    """

    without_decay = frozenset({"numerator", "denominator"})  # decay would pull the function towards 0

    def __init__(self, num_features: int, num_groups: int, shape: Shape) -> None:
        super().__init__()
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(f"num_groups: expected a divisor of the {num_features} channels, found {num_groups}")
        if shape not in get_args(Shape):
            raise ValueError(f"shape: expected {' or '.join(get_args(Shape))}, found {shape}")
        numerator, denominator = COEFFICIENTS[shape]
        self.numerator = nn.Parameter(torch.tensor(numerator, dtype=torch.float32))
        self.denominator = nn.Parameter(torch.tensor(denominator, dtype=torch.float32).repeat(num_groups, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return rational(x, self.numerator, self.denominator)


def variance_gain(shape: Shape) -> float:
    """1 / E[F(x)^2] for x ~ N(0, 1): weights of variance gain / fan-in preserve the variance after F."""
    x = torch.linspace(-12.0, 12.0, 24_001, dtype=torch.float64)
    a, b = (torch.tensor(coefficients, dtype=torch.float64) for coefficients in COEFFICIENTS[shape])
    density = torch.exp(-x.square() / 2.0) / math.sqrt(2.0 * math.pi)
    return 1.0 / float(torch.trapezoid(rational(x, a, b[None]).square() * density, x))


class RationalFeedForward(nn.Module):
    """W2 Drop(F2(W1 Drop(F1(x)))): rational functions before both linear maps; (..., H) -> (..., H).

    The first function acts on the block's normalised input, and there is no dropout after W2: both as published.

    Args:
        hidden_dim: H, a multiple of ``num_groups``.
        inner_dim: Width between W1 and W2, a multiple of ``num_groups``.
        dropout: Probability of both dropouts.
        num_groups: G, groups of channels that share a denominator; a layer has 2 (6 + 4 G) coefficients.
        first: Initial function of F1.
        second: Initial function of F2: "swish" in the published models, or "gelu".
        init: Initial weights: "variance" for N(0, gain / fan-in) with the gain that preserves the variance of
            activations, as in the paper; "release" for N(0, 0.02^2), as in its code. Biases are 0.

    Raises:
        ValueError: A width is not a multiple of ``num_groups``, or a choice is unknown.

    Examples:
        >>> RationalFeedForward(32, 64, dropout=0.0)(torch.zeros(5, 4, 32)).shape
        torch.Size([5, 4, 32])
    """

    def __init__(
        self,
        hidden_dim: int,
        inner_dim: int,
        dropout: float,
        num_groups: int = 8,
        first: Shape = "identity",
        second: Shape = "swish",
        init: Init = "variance",
    ) -> None:
        super().__init__()
        if init not in get_args(Init):
            raise ValueError(f"RationalFeedForward.init: expected {' or '.join(get_args(Init))}, found {init}")
        self.first = GroupRational(hidden_dim, num_groups, first)
        self.up = _linear(hidden_dim, inner_dim, first, init)
        self.second = GroupRational(inner_dim, num_groups, second)
        self.down = _linear(inner_dim, hidden_dim, second, init)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        inner = self.up(self.dropout(self.first(tokens)))
        output: Tensor = self.down(self.dropout(self.second(inner)))
        return output


def _linear(in_features: int, out_features: int, before: Shape, init: Init) -> nn.Linear:
    """Makes the linear map after a rational function."""
    layer = nn.Linear(in_features, out_features)
    std = RELEASE_STD if init == "release" else math.sqrt(variance_gain(before) / in_features)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer
