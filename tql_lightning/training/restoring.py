"""Checks an optimizer's state from a checkpoint before torch's kernels read it, which trust its shapes.

Of a schedule's state only counts are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

OF_ADAM = ("step", "exp_avg", "exp_avg_sq")
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum")  # what torch's fused kernels read


class RestorableSchedule(LambdaLR):
    """Schedule that takes no more than its counts from a checkpoint, whose state may name any of its attributes.

    All else follows from the run's settings.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the number of steps."""
        for name in ("last_epoch", "_step_count"):
            if type(state_dict[name]) is int:
                setattr(self, name, state_dict[name])


def check_restored_states(optimizers: Iterable[Optimizer]) -> None:
    """Has every later ``load_state_dict`` of optimizers checked; see `checked_state`."""
    for optimizer in optimizers:
        optimizer.register_load_state_dict_pre_hook(checked_state)


def checked_state(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's state of an optimizer, with the optimizer's own settings apart from numbers.

    A fused kernel reads and writes beyond a moment that has fewer numbers than its parameter.

    Raises:
        ValueError: The state of a parameter is not of its shape, or lacks a part.
    """
    pairs = zip(optimizer.param_groups, state["param_groups"], strict=False)
    groups = [_with_own_settings(own, given) for own, given in pairs]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=False):
        entries = state["state"].get(number, {})
        if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and entries and not entries.keys() >= {*OF_ADAM}:
            raise ValueError(f"optimizer's state: parameter {number}: expected {', '.join(OF_ADAM)}, found others")
        for name, value in entries.items():
            if name == "step" and not _is_number(value):
                raise ValueError(f"optimizer's state: parameter {number}: step: expected a number, found none")
            if name in MOMENTS and not _is_like(value, parameter):
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"optimizer's state: parameter {number}: {name}: expected numbers of shape "
                    f"{tuple(parameter.shape)}, found {found}"
                )
    return {"state": state["state"], "param_groups": [*groups, *state["param_groups"][len(groups) :]]}


def _with_own_settings(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group whose switches are the optimizer's own, and its numbers the checkpoint's."""
    numbers = {name: value for name, value in given.items() if _is_number(value) and _is_number(own.get(name))}
    return {**own, **numbers, "params": given["params"]}


def _is_like(value: object, parameter: Tensor) -> bool:
    """Whether a value is a tensor of a parameter's shape whose numbers lie one after the other."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return False
    return value.is_contiguous() or value.stride() == parameter.stride()


def _is_number(value: object) -> bool:
    return type(value) in (int, float) or (isinstance(value, Tensor) and value.numel() == 1)
