"""Actions as bins and back."""

from __future__ import annotations

import pytest
import torch

from tql_lightning.nn.action_bins import ActionBins


def test_bins_cut_the_range_evenly_and_centres_come_back() -> None:
    bins = ActionBins([-1.0, 0.0], [1.0, 2.0], 4)
    assert bins(torch.tensor([[-1.0, 0.0], [-0.5, 0.49], [0.0, 0.5], [1.0, 2.0], [-3.0, 9.0]])).tolist() == [
        [0, 0], [1, 0], [2, 1], [3, 3], [0, 3],
    ]  # fmt: skip
    every = torch.arange(4).unsqueeze(-1).expand(-1, 2)
    torch.testing.assert_close(bins.centres(every)[:, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    assert torch.equal(bins(bins.centres(every)), every)


def test_a_dimension_that_never_changes_is_widened() -> None:
    bins = ActionBins([0.3], [0.3], 3)
    assert bins.low.item() == pytest.approx(-0.7)
    assert bins.high.item() == pytest.approx(1.3)
    assert bins(torch.tensor([[0.3]])).item() == 1


def test_bounds_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="action_range: expected finite bounds, each low at most its high"):
        ActionBins([0.0], [-1.0], 4)
    with pytest.raises(ValueError, match="num_bins: expected at least 2, found 1"):
        ActionBins([0.0], [1.0], 1)
