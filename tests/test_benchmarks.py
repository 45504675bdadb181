"""What the benchmarks measure, on functions whose answer is known."""

from __future__ import annotations

from benchmarks.collapse import tail


def test_the_tail_is_the_mean_of_the_last_tenth() -> None:
    assert tail({"x": (list(range(20)), [0.0] * 18 + [1.0, 3.0])}, "x") == 2.0
