"""How numbers are written in everything that people read: the page, Markdown and LaTeX tables."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from tql_lightning.run import baselines

GROUPED = 999.5  # from here on whole numbers with thousands separators
EXPONENT_FROM = 1e9
EXPONENT_BELOW = 1e-3
NONE = "–"


def number(value: float | None) -> str:
    """Formats a number with three or four digits, thousands separators and a true minus; charts.js does the same."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size >= EXPONENT_FROM or 0 < size < EXPONENT_BELOW:
        text = re.sub(r"(\.0+|(\.\d*[1-9])0+)?e([+-])0*", r"\2e\3", f"{value:.2e}")
    else:
        text = f"{value:,.0f}" if size >= GROUPED else f"{value:.4g}" if size >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


class Score(NamedTuple):
    """A figure of evaluations that methods are compared by.

    Attributes:
        title: Its name in words.
        shared: Whether tasks share its scale.
        factor: Number that values are multiplied by to be shown.
        unit: What follows a shown value.
    """

    title: str
    shared: bool
    factor: float = 1.0
    unit: str = ""

    @property
    def heading(self) -> str:
        """The name with its unit, above values without one."""
        return f"{self.title},{self.unit}" if self.unit else self.title

    def text(self, value: float | None) -> str:
        """A value without its unit."""
        return number(None if value is None else self.factor * value)


ABOUT = (
    Score("success rate", shared=True, factor=100.0, unit=" %"),
    Score("normalised score", shared=True),
    Score("return", shared=False),
)
SCORES = dict(zip(baselines.SCORES, ABOUT, strict=True))


def score_named(name: str) -> Score:
    """The score of a metric, whatever its stage: ``eval/success_rate`` and ``success_rate`` are one."""
    last = name.rpartition("/")[2]
    return SCORES.get(last, Score(last.replace("_", " "), shared=False))
