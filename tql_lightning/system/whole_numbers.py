"""Settings that are whole numbers, of Python or of NumPy."""

from __future__ import annotations

from operator import index


def whole(name: str, value: object, at_least: int | None = None) -> int:
    """Returns a setting as Python's integer, which JSON can hold.

    Args:
        name: Name of the setting, for the message.
        value: What was given.
        at_least: Smallest number that is allowed; None for any.

    Raises:
        ValueError: It is no whole number, or a smaller one.

    Examples:
        >>> whole("data.seed", 3.0)
        Traceback (most recent call last):
        ValueError: data.seed: expected a whole number, found 3.0
    """
    bound = "" if at_least is None else f" of at least {at_least}"
    try:
        number = index(value)  # type: ignore[arg-type]  # what it does not take is refused below
    except TypeError:
        raise ValueError(f"{name}: expected a whole number{bound}, found {value!r:.80}") from None
    if at_least is not None and number < at_least:
        raise ValueError(f"{name}: expected at least {at_least}, found {number}")
    return number
