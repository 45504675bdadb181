"""Which number types weights are trained in."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import HalfPrecision

NARROW = (torch.bfloat16, torch.float16)


def refuse_narrow_weights(model: LightningModule, trainer: Trainer) -> None:
    """Refuses to train weights of 16 bits.

    Their last digit is 1/256 (bfloat16) or 1/2048 (float16) of them. Most steps of a tau of 0.005 and of learning rates
    are smaller and are rounded away: the target critic would stand still.

    Raises:
        ValueError: the trainer's precision, or the model itself, asks for that.
    """
    narrow = any(weight.dtype in NARROW for weight in model.parameters())
    if narrow or isinstance(trainer.precision_plugin, HalfPrecision):
        raise ValueError(
            "trainer.precision: expected weights of at least float32 to train, found 16 bits with "
            f"{trainer.precision}, in which most steps of tau and of the learning rates are less than a weight's last "
            "digit and vanish; use bf16-mixed, or 16-mixed on a GPU"
        )
