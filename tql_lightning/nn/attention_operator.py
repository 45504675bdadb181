"""Registers an attention implementation that has its own backward pass as an operator of torch."""

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
    """Registers a differentiable operator, which `torch.compile` treats as one opaque node.

    Args:
        name: Name of the operator in torch.
        forward: Maps queries (B, h, m, e), keys and values (B, h, n, e) and the number of queries that need attended
            values to attended values (B, h, num_attended, e) and entropies (B, h, m).
        backward: Maps queries, keys, values and gradients of both outputs to gradients of queries, keys and values.
        empty_outputs: Returns uninitialised outputs of ``forward``, with the same shapes, types and strides.
    """
    operator = torch.library.custom_op(f"tql_lightning::{name}", _without_autocast(forward), mutates_args=())
    gradient = torch.library.custom_op(f"tql_lightning::{name}_backward", _without_autocast(backward), mutates_args=())

    def remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001
        ctx.save_for_backward(*inputs[:3])

    def differentiate(ctx: Any, grad_attended: Tensor, grad_entropy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *gradient(*ctx.saved_tensors, grad_attended, grad_entropy), None

    operator.register_fake(empty_outputs)
    operator.register_autograd(differentiate, setup_context=remember)
    gradient.register_fake(lambda *tensors: tuple(tensor.new_empty(tensor.shape) for tensor in tensors[:3]))
    return operator


def _without_autocast(implementation: Implementation) -> Implementation:
    """Disables autocast around an implementation, which chooses its own number types."""

    @wraps(implementation)
    def uncast(queries: Tensor, *others: Any) -> Any:
        with torch.autocast(queries.device.type, enabled=False):
            return implementation(queries, *others)

    return cast("Implementation", uncast)
