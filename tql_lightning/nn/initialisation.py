"""Weight initialisation of the authors' release (spec section 2)."""

from __future__ import annotations

import math

from torch import nn

TRUNCATED_STD = 0.87962566103423978  # standard deviation of N(0, 1) truncated to [-2, 2]
LAYER_NORM_EPS = 1e-6


def lecun_normal_(linear: nn.Linear) -> nn.Linear:
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
