"""Number types of losses and entropies."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Converts a tensor to float32, the number type of losses, unless it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
