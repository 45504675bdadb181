"""Private names of torch that networks use, each behind a function with a plain name.

An upgrade that renames one breaks here, and ``tests/system/test_private_api.py`` names it.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

HAS_ONEDNN = (  # elsewhere it was not measured
    platform.machine() == "x86_64" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
)


def onednn_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Does what ``torch.nn.functional.linear`` does, for float32 on a processor, by oneDNN and without gradients."""
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def _operations(inputs: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Counts the floating point operations of `onednn_linear` from the shapes (..., in) and (out, in)."""
    return 2 * math.prod(inputs) * weight[0]


if HAS_ONEDNN:
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_operations)
