"""What the benchmarks measure, on functions whose answer is known."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import data
from benchmarks.collapse import tail
from benchmarks.harness import Peak, alternate, count_flops


def test_the_tail_is_the_mean_of_the_last_tenth() -> None:
    assert tail({"x": (list(range(20)), [0.0] * 18 + [1.0, 3.0])}, "x") == 2.0


def test_variants_are_alternated_in_turning_order_and_compared_round_by_round() -> None:
    calls: list[str] = []
    readings = iter([0.0, 1.0, 10.0, 12.0, 20.0, 28.0, 30.0, 32.0])
    variants = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    comparison = alternate(variants, rounds=2, warmup=1, clock=lambda: next(readings))
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert comparison.seconds == {"a": [1.0, 2.0], "b": [2.0, 8.0]}
    assert comparison.ratio("a", "b") == pytest.approx((0.5 + 0.25) / 2)
    assert comparison.median("b") == 5.0
    assert comparison.spread("b") == 3.0


def test_flops_are_counted_forward_and_backward() -> None:
    weight = torch.randn(5, 7, requires_grad=True)
    inputs = torch.randn(3, 5, requires_grad=True)
    assert count_flops(lambda: (inputs @ weight).sum().backward()) == 3 * 2 * 3 * 5 * 7


def test_a_matrix_product_reaches_its_own_peak() -> None:
    peak = Peak(size=64)
    comparison = alternate({"same": peak.variants["peak"], **peak.variants}, clock=iter(range(100)).__next__)
    assert peak.fields(comparison, "same", flops=2.0 * 64**3)["same_share_of_peak"] == 1.0


def data_options(**changes: Any) -> argparse.Namespace:
    options = {"transitions": 2000, "device": "cpu", "updates_per_step": 2, "storage": "auto", "n_step": 2}
    return argparse.Namespace(**options | {"action_chunk": 2, "rounds": 1, "warmup": 1} | changes)


def test_every_source_is_compared_with_a_plain_dataloader_and_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"BATCH": 64, "CHUNKS": 2, "HIDDEN": 32}.items():
        monkeypatch.setattr(data, name, value)
    result = data.compare(data_options(), tmp_path)
    for name in ("memory", "mapped", "n_step", "action_chunk"):
        assert result[f"{name}_times_dataloader"] > 2.0
        assert 0.0 < result[f"{name}_and_noise_share_of_update"] < 0.2  # of an update far smaller than the real one
    assert result["dataloader_times_dataloader"] == 1.0


@pytest.mark.slow
def test_files_larger_than_the_memory_that_may_be_allocated_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "FILE_GIGABYTES", 1.5)
    result = data.larger_than_memory(0.6, tmp_path, 10)
    assert 1.4 < result["file_gb"] < 1.6
    assert max(result["cached_anonymous_mb"], result["uncached_anonymous_mb"]) < 600
    assert result["cached_peak_resident_mb"] < 1000
    assert "Unable to allocate" in result["read_into_memory"]
