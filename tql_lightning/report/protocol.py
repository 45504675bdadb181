"""How a run is judged: which of its evaluations make its score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Protocol = Literal["last_three", "last", "best"]
LAST_THREE = 3
DESCRIPTIONS: dict[Protocol, str] = {
    "last_three": "mean of the last three evaluations",
    "last": "last evaluation",
    "best": "best evaluation (chosen by its own score, and so too high)",
}


def score_of(values: Sequence[float], protocol: Protocol) -> float | None:
    """Score of a complete run.

    Args:
        values: Figure of each evaluation after an update, in order; that of the initial policy does not count.
        protocol: Which evaluations count.

    Returns:
        The score; None with too few evaluations.
    """
    if len(values) < (LAST_THREE if protocol == "last_three" else 1):
        return None
    if protocol == "last_three":
        return sum(values[-LAST_THREE:]) / LAST_THREE
    return values[-1] if protocol == "last" else max(values)
