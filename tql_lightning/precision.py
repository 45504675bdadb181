"""The number type of weights: what a trainer's precision makes of them."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn

NARROW = (torch.bfloat16, torch.float16)


def take_number_type(model: LightningModule) -> None:
    """Gives a model's weights the type that its trainer's ``precision`` asks for, before a checkpoint is loaded.

    Lightning does so afterwards, which would round a checkpoint in float64.

    Raises:
        ValueError: weights of 16 bits are to be trained.
    """
    model.trainer.precision_plugin.convert_module(model)
    narrow = {str(weight.dtype) for weight in model.parameters() if weight.dtype in NARROW}
    if narrow and model.trainer.state.fn == TrainerFn.FITTING:
        raise ValueError(
            f"trainer.precision: expected weights of at least float32 to train, found {', '.join(sorted(narrow))} with "
            f"{model.trainer.precision}, in which most steps of tau and of the learning rates are less than a weight's "
            "last digit and vanish; use bf16-mixed, or 16-mixed on a GPU"
        )
