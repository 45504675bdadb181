"""What a file or a library says, fit to be shown: short, on one line, and without a terminal's control sequences."""

from __future__ import annotations

from typing import Any

SHORT = 80  # characters
LONGEST_MESSAGE = 4_000


class FileError(ValueError):
    """Something is wrong with a file; the message may quote it, and is fit to be printed.

    Args:
        message: for the user; control sequences in it are shown as text, and what is too long is cut off.
    """

    def __init__(self, message: str = "") -> None:
        text = str(message)  # Gymnasium makes an error of another process's error
        short = text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."
        super().__init__(escaped(short, keep="\n"))


def shown(value: Any, limit: int = SHORT) -> str:
    """A value from a file in a few characters; of what may be large only its type is told.

    Args:
        value: anything; nothing of it is called.
        limit: characters of text.
    """
    if isinstance(value, str):
        return escaped(value if len(value) <= limit else f"{value[:limit]}...")
    if value is None or type(value) in (bool, float):
        return str(value)
    if type(value) is int:
        return str(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"
    return type(value).__name__


def escaped(text: str, keep: str = "") -> str:
    r"""Text with every character that is not printed as itself in Python's notation, such as \x1b for escape.

    Args:
        text: of unknown origin.
        keep: characters that stay as they are, such as line breaks.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escape(each) for each in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
