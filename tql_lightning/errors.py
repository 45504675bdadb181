"""Turns what went wrong into a few lines for the user."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

MOST_LINES = 8
LINE_LENGTH = 240
NEEDLESS = (  # how jsonargparse tells of the alternatives it tried
    "Does not validate against any of the Union subtypes",
    "Errors:",
    "Given value type:",
    "Not a valid subclass of",
    "Subclass types expect one of",
    "Subtypes:",
    "a class path (str)",
    "a dict with",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
)
LOST_ANOTHER = (
    "another of the processes that train together has ended, and the run with it; why stands in its own messages; "
    "continue with --ckpt_path=last"
)
UNRECOGNIZED = "unrecognized arguments:"


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
    text = str(error)
    if not isinstance(error, known):
        import torch

        from tql_lightning.out_of_memory import TooLittleMemoryError, advice, is_out_of_memory, remedies_for
        from tql_lightning.processes import has_lost_another

        if is_out_of_memory(error):
            if not isinstance(error, TooLittleMemoryError):
                gpu = isinstance(error, torch.OutOfMemoryError)
                text = advice(error, "memory does not suffice", remedies_for(torch.device("cuda" if gpu else "cpu")))
        elif has_lost_another(error):
            text = f"{LOST_ANOTHER}\n{text}"
        else:
            return None
    lines = _essence("\n".join([text, *getattr(error, "__notes__", ())]))
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES // 2], "...", *lines[-MOST_LINES // 2 + 1 :]]
    lines[:1] = [f"tql: {lines[0] if lines else type(error).__name__}"]
    return "\n".join([*lines, "(tql --help lists the commands; TQL_TRACEBACK=1 shows where this was raised)"])


def _essence(message: str) -> list[str]:
    """The lines of a message that say something, each once."""
    lines = [line.strip()[:LINE_LENGTH] for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if not line.removeprefix("- ").startswith(NEEDLESS)]
    return list(dict.fromkeys(telling or lines))


def name_close_options(error: Exception, options: Collection[str]) -> None:
    """Adds to an error about an unknown option a note of those that are close.

    Args:
        error: what a parser raised.
        options: every option there is.
    """
    if str(error).startswith(UNRECOGNIZED):
        flags = [word.partition("=")[0] for word in str(error).split() if word.startswith("--")]
        close = [match for flag in flags for match in difflib.get_close_matches(flag, options, n=2)]
        if close:
            error.add_note(f"did you mean {' or '.join(close)}?")


def exit_code_of(trainer: Trainer) -> int:
    """128 + the number of the signal that ended training (130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1), else 0.

    Of several processes only the first tells: whatever launched them takes another's number for a failure, and may end
    the first before it is done.
    """
    if not getattr(trainer, "is_global_zero", True):
        return 0
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    received = [callback.received for callback in callbacks if getattr(callback, "received", None) is not None]
    return 128 + int(received[0]) if received else 0
