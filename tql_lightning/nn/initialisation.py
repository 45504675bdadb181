"""Weight initialisation of the authors' release (section 2 of docs/algorithm.md)."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor, nn

TRUNCATED_STD = 0.87962566103423978  # standard deviation of N(0, 1) truncated to [-2, 2]
LAYER_NORM_EPS = 1e-6

Linear = TypeVar("Linear", bound=nn.Linear)


class LayerNorm(nn.LayerNorm):
    """LayerNorm with the release's epsilon.

    Args:
        dim: Size of the last dimension, which is normalised.
        eps: Constant added to the variance.

    Examples:
        >>> LayerNorm(2)(torch.tensor([1.0, 3.0])).detach()
        tensor([-1.0000,  1.0000])
    """

    def __init__(self, dim: int, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__(dim, eps=eps)


class RMSNorm(nn.RMSNorm):
    """RMSNorm with a learned scale, computed in that scale's number type: float32 under autocast, like LayerNorm.

    Args:
        dim: Size of the last dimension, which is normalised.
        eps: Constant added to the mean square.

    Examples:
        >>> RMSNorm(2)(torch.tensor([3.0, 3.0])).detach()
        tensor([1.0000, 1.0000])
    """

    def __init__(self, dim: int, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return super().forward(x.to(self.weight.dtype))


class StackedLinear(nn.Linear):
    """Several linear maps of the same input, stacked in one matrix.

    Args:
        in_features: Size of the input.
        out_features: Size of one map's output.
        stacked: Number of maps.
    """

    def __init__(self, in_features: int, out_features: int, stacked: int) -> None:
        super().__init__(in_features, stacked * out_features)
        self.stacked = stacked


def lecun_normal_(linear: Linear) -> Linear:
    """Draws a layer's weight from truncated N(0, 1 / fan_in) and sets its bias to 0, in place.

    Args:
        linear: Layer; its fan-in is ``in_features``.

    Returns:
        The same layer.
    """
    std = 1.0 / math.sqrt(linear.in_features) / TRUNCATED_STD
    nn.init.trunc_normal_(linear.weight, std=std, a=-2.0 * std, b=2.0 * std)
    nn.init.zeros_(linear.bias)
    return linear
