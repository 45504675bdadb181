"""Makes an operator of torch from an implementation of attention that brings its own backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Implementation = TypeVar("Implementation", Forward, Backward)


def attention_operator(name: str, forward: Forward, backward: Backward, empty_outputs: Forward) -> Forward:
    """An operator with a gradient, that `torch.compile` takes as one node: it does not look inside.

    Args:
        name: how the operator is called in torch.
        forward: queries (B, h, m, e), keys and values (B, h, n, e) and the number of queries whose attended values
            are wanted -> attended values (B, h, num_attended, e) and entropies (B, h, m).
        backward: queries, keys, values and the gradients of both outputs -> the gradients of queries, keys and values.
        empty_outputs: what `forward` returns, with the same shapes, types and strides, not computed.
    """
    operator = torch.library.custom_op(f"tql_lightning::{name}", _own_types(forward), mutates_args=())
    gradient = torch.library.custom_op(f"tql_lightning::{name}_backward", _own_types(backward), mutates_args=())

    def remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001
        ctx.save_for_backward(*inputs[:3])

    def differentiate(ctx: Any, grad_attended: Tensor, grad_entropy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *gradient(*ctx.saved_tensors, grad_attended, grad_entropy), None

    operator.register_fake(empty_outputs)
    operator.register_autograd(differentiate, setup_context=remember)
    gradient.register_fake(lambda *tensors: tuple(tensor.new_empty(tensor.shape) for tensor in tensors[:3]))
    return operator


def _own_types(implementation: Implementation) -> Implementation:
    """An implementation that computes in the types it chose, also where it is called under autocast."""

    @wraps(implementation)
    def uncast(queries: Tensor, *others: Any) -> Any:
        with torch.autocast(queries.device.type, enabled=False):
            return implementation(queries, *others)

    return cast("Implementation", uncast)
