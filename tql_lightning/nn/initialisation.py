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
        dim: size of what is normalised, the last dimension.
        eps: added to the variance.
    """

    def __init__(self, dim: int, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__(dim, eps=eps)


class RMSNorm(nn.RMSNorm):
    """RMSNorm with a learned scale, in the number type of that scale: float32 under autocast, as LayerNorm.

    Args:
        dim: size of what is normalised, the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return super().forward(x.to(self.weight.dtype))


class StackedLinear(nn.Linear):
    """Several linear maps of the same input in one matrix, ``stacked`` of them.

    Args:
        in_features: size of the input.
        out_features: size of one map's output.
        stacked: how many maps.
    """

    def __init__(self, in_features: int, out_features: int, stacked: int) -> None:
        super().__init__(in_features, stacked * out_features)
        self.stacked = stacked


def lecun_normal_(linear: Linear) -> Linear:
    """Sets a layer's weight to truncated N(0, 1 / fan_in) and its bias to 0, in place.

    Args:
        linear: the layer; its fan-in is ``in_features``.

    Returns:
        The same layer.
    """
    std = 1.0 / math.sqrt(linear.in_features) / TRUNCATED_STD
    nn.init.trunc_normal_(linear.weight, std=std, a=-2.0 * std, b=2.0 * std)
    nn.init.zeros_(linear.bias)
    return linear
