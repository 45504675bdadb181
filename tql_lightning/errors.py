"""Turns what went wrong into a few lines for the user."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

MOST_LINES = 8
LINE_LENGTH = 240


def short_message(error: BaseException) -> str | None:
    """A message of at most ten lines for a mistake of the user's, or None for what looks like a bug.

    Args:
        error: what was raised.
    """
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    known = (
        ValueError,
        OSError,
        ImportError,
        argparse.ArgumentError,
        ArgumentError,
        MisconfigurationException,
        OmegaConfBaseException,
        YAMLError,
    )
    if not isinstance(error, known):
        return None
    lines = [line.strip()[:LINE_LENGTH] for line in str(error).splitlines() if line.strip()]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES // 2], "...", *lines[-MOST_LINES // 2 + 1 :]]
    lines[:1] = [f"tql: {lines[0] if lines else type(error).__name__}"]
    return "\n".join([*lines, "(tql --help lists the commands; TQL_TRACEBACK=1 shows where this was raised)"])


def exit_code_of(trainer: Trainer) -> int:
    """128 + the number of the signal that ended training (130 for Ctrl-C, 143 for SIGTERM), else 0."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    received = [callback.received for callback in callbacks if getattr(callback, "received", None) is not None]
    return 128 + int(received[0]) if received else 0
