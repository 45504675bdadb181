"""Shortens exceptions to a message of a few lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tql_lightning.cli.parser_messages import informative_lines
from tql_lightning.trust.text import escaped

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

MOST_LINES = 8
LINE_LENGTH = 500
USER_ERRORS = {  # class names, because importing Lightning for its classes takes seconds
    *("ValueError", "OSError", "ImportError", "SyntaxError", "ArgumentError"),
    *("MisconfigurationException", "OmegaConfBaseException", "YAMLError"),
    *("UsageError", "CommError"),  # of W&B: without an API key, without a server
}
PEER_LOST_MESSAGE = (
    "another process of this run has ended, so the run cannot go on; that process printed the reason, unless it was "
    "killed; continue with --ckpt_path=last"
)


def short_message(error: BaseException) -> str | None:
    """A message of at most ten lines for a user's mistake; None for an exception that looks like a bug.

    Args:
        error: The exception.
    """
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and "pip install" not in text:
        text = f"{text}; pip install {error.name.partition('.')[0]}"
    if not (USER_ERRORS & {each.__name__ for each in type(error).__mro__}):
        import torch

        from tql_lightning.training.distributed import has_lost_another
        from tql_lightning.training.out_of_memory import TooLittleMemoryError, advice, is_out_of_memory, remedies_for

        if is_out_of_memory(error):
            if not isinstance(error, TooLittleMemoryError):
                gpu = isinstance(error, torch.OutOfMemoryError)
                text = advice(error, "memory does not suffice", remedies_for(torch.device("cuda" if gpu else "cpu")))
        elif has_lost_another(error):
            text = f"{PEER_LOST_MESSAGE}\n{text}"
        else:
            return None
    lines = informative_lines("\n".join([text, *getattr(error, "__notes__", ())]), LINE_LENGTH)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES // 2], "...", *lines[-MOST_LINES // 2 + 1 :]]
    lines[:1] = [f"tql: {lines[0] if lines else type(error).__name__}"]
    lines = [escaped(line) for line in lines]
    return "\n".join([*lines, "(tql --help lists the commands; TQL_TRACEBACK=1 shows where this was raised)"])


def exit_code_of(trainer: Trainer) -> int:
    """128 + the number of the signal that ended training (130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1), else 0.

    Only rank 0 returns a signal's code: a launcher takes another rank's code for a failure and may kill rank 0 before
    it has saved.
    """
    if not getattr(trainer, "is_global_zero", True):
        return 0
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    received = [callback.received for callback in callbacks if getattr(callback, "received", None) is not None]
    return 128 + int(received[0]) if received else 0
