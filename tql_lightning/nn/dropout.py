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
    active = [part for part in module.modules() if part.training]
    _set_training(active, False)
    try:
        yield
    finally:
        _set_training(active, True)


def _set_training(modules: list[nn.Module], training: bool) -> None:
    """Sets the flag itself: `nn.Module.__setattr__` would take longer than a small policy does to act."""
    for part in modules:
        vars(part)["training"] = training
