"""What a file or a library says, fit to be shown: short, on one line, and without a terminal's control sequences."""

from __future__ import annotations

from typing import Any

SHORT = 80  # characters


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


def escaped(text: str, lines: bool = False) -> str:
    r"""Text with every character that is not printed as itself in Python's notation, such as \x1b for escape.

    Args:
        text: of unknown origin.
        lines: whether line breaks stay.
    """
    if text.isprintable():
        return text
    keep = "\n" if lines else ""
    return "".join(each if each.isprintable() or each in keep else _escape(each) for each in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
