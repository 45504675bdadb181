"""Leaves finished guides of self-guided layers out of checkpoints; see `tql_lightning.nn.structured.SelfGuide`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tql_lightning.nn.structured import guided_layers


def leave_out_finished_guides(checkpoint: dict[str, Any], model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Removes the optimizer state of finished guides; the layers leave out their weights themselves.

    Args:
        checkpoint: Checkpoint that is about to be written.
        model: Model that is trained.
        optimizers: Its optimizers, in the order of the checkpoint's states.
    """
    finished = {id(layer.guide) for layer in guided_layers(model) if layer.guide_is_over}
    if not finished:
        return
    for optimizer, state in zip(optimizers, checkpoint.get("optimizer_states", []), strict=False):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state.get("param_groups", []) for number in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=False):
            if id(parameter) in finished:
                state["state"].pop(number, None)
