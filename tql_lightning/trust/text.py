"""What a file or a library says, fit to be shown: short, on one line, and without a terminal's control sequences."""

from __future__ import annotations

from typing import Any

SHORT = 80  # characters
LONGEST_MESSAGE = 4_000


class FileError(ValueError):
    """Something is wrong with a file; the message may quote it, and is fit to be printed.

    Args:
        message: Message for the user; its control sequences are shown as text, and a long one is cut off.
    """

    def __init__(self, message: str = "") -> None:
        text = str(message)  # Gymnasium makes an error of another process's error
        short = text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."
        super().__init__(escaped(short, keep="\n"))


def shown(value: Any, limit: int = SHORT) -> str:
    """Describes a value from a file in a few characters; of containers it names the type alone.

    Args:
        value: Any value; none of its methods is called.
        limit: Largest number of characters of a text.
    """
    if isinstance(value, str):
        return escaped(value if len(value) <= limit else f"{value[:limit]}...")
    if value is None or type(value) in (bool, float):
        return str(value)
    if type(value) is int:
        return str(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"
    return type(value).__name__


def escaped(text: str, keep: str = "") -> str:
    r"""Writes characters that are not printable in Python's notation, such as \x1b for escape.

    Args:
        text: Text of unknown origin.
        keep: Characters to leave unchanged, such as line breaks.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escape(each) for each in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
