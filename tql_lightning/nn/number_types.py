"""Number types that losses and entropies are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that: what losses are computed in, whatever networks compute in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
