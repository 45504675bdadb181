"""Means over held-out transitions."""

import torch
from torch import tensor

from tql_lightning.training.held_out import HeldOutMeans


def test_batches_count_by_their_size_and_extremes_stay_extremes() -> None:
    means = HeldOutMeans()
    entropy = {"attention_entropy": tensor([[1.0, 2.0]])}
    means.add(3, {"td_loss": tensor(1.0), "target_q_min": tensor(-5.0), "v_max": tensor(2.0)}, entropy)
    means.add(1, {"td_loss": tensor(5.0), "target_q_min": tensor(-9.0), "v_max": tensor(1.0)}, entropy)
    expected = {"td_loss": 2.0, "target_q_min": -9.0, "v_max": 2.0}
    expected |= {"attention_entropy/layer_0/value": 1.0, "attention_entropy/layer_0/others": 2.0}
    assert means.take() == expected
    assert means.take() == {}


def test_a_value_that_is_not_finite_is_reported_and_halves_count_as_floats() -> None:
    means = HeldOutMeans()
    means.add(2, {"loss": tensor(float("nan")), "half": tensor(0.1, dtype=torch.bfloat16)}, {})
    taken = means.take()
    assert taken["loss"] != taken["loss"]
    assert taken["half"] == float(tensor(0.1, dtype=torch.bfloat16))
