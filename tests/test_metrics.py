"""Metrics against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tql_lightning.metrics import MeanWithError


def test_mean_and_error_equal_numpys_over_several_updates() -> None:
    values = np.random.default_rng(0).normal(-124.0, 0.3, size=50)
    metric = MeanWithError()
    for part in np.split(values, [7, 20]):
        metric.update(torch.as_tensor(part))
    mean, error = metric.compute()
    assert mean.item() == pytest.approx(values.mean(), rel=1e-12)
    assert error.item() == pytest.approx(values.std(ddof=1) / np.sqrt(50), rel=1e-6)


def test_a_single_value_has_no_error() -> None:
    metric = MeanWithError()
    metric.update(torch.tensor([3.0]))
    assert [value.item() for value in metric.compute()] == [3.0, 0.0]


def test_processes_add_up() -> None:
    values = torch.arange(10.0)
    whole, left, right = MeanWithError(), MeanWithError(), MeanWithError()
    whole.update(values)
    left.update(values[:4])
    right.update(values[4:])
    for name in ("total", "squares", "count"):
        setattr(left, name, getattr(left, name) + getattr(right, name))  # as dist_reduce_fx="sum" does
    assert [value.item() for value in left.compute()] == [value.item() for value in whole.compute()]
