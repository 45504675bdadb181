"""Disables dropout, or all of training mode, of a network for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Switches a module's dropout layers off in the block, and leaves all other layers in their mode."""
    active = [part for part in module.modules() if isinstance(part, DROPOUTS) and part.training and part.p > 0.0]
    for part in active:
        part.training = False
    try:
        yield
    finally:
        for part in active:
            part.training = True


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Puts every submodule in evaluation mode, and restores each one's mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
