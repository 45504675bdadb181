"""Marks of tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_after(kept: int, values: Iterable[Any]) -> list[Any]:
    """Cases of one kind: every run takes the first few, ``make test-slow`` all of them."""
    return [
        value if number < kept else pytest.param(value, marks=pytest.mark.slow) for number, value in enumerate(values)
    ]
