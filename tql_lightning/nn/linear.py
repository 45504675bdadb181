"""Linear layers that are computed by the faster of torch's two libraries on a processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tql_lightning.nn.private_api import HAS_ONEDNN, onednn_linear

FEWEST_PRODUCTS = 1 << 26  # 256 rows through a layer of 512 x 512; below, nothing was gained


class Linear(nn.Linear):
    """``torch.nn.Linear``, whose large float32 products on x86 processors oneDNN computes; (..., in) -> (..., out).

    torch gives float32 products to MKL, which on AMD's processors takes a tenth to a third longer for the output and
    for the gradient of the input; for that of the weights it is the faster one, and keeps it. The results differ by
    rounding. Small products, other devices and number types, autocast and compiled code are as in torch.

    Examples:
        >>> Linear(3, 2)(torch.zeros(5, 4, 3)).shape
        torch.Size([5, 4, 2])
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class."""
        weight = self.weight  # read once: a parametrization computes it on each read
        if not _onednn_takes(inputs, weight):
            return nn.functional.linear(inputs, weight, self.bias)
        output: Tensor = _OneDNNLinear.apply(inputs, weight, self.bias)  # type: ignore[no-untyped-call]
        return output


def _onednn_takes(inputs: Tensor, weight: Tensor) -> bool:
    return (
        HAS_ONEDNN
        and not torch.compiler.is_compiling()  # first: the sizes of an export are symbols
        and inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.numel() * weight.shape[0] >= FEWEST_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
    )


class _OneDNNLinear(torch.autograd.Function):
    """x W^T + b and its gradients, of any number of leading dimensions."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return onednn_linear(inputs.contiguous(), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        flat = gradient.reshape(-1, weight.shape[0])
        return (
            onednn_linear(flat, weight.t(), None).view_as(inputs) if of_inputs else None,
            flat.t() @ inputs.reshape(-1, weight.shape[1]) if of_weight else None,
            flat.sum(dim=0) if of_bias else None,
        )
