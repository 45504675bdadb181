"""The actor that acts by the centre of an actor's actions under observation noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tql_lightning.evaluation.smoothed_actor import CANDIDATES, smoothed_actor
from tql_lightning.nn.policy import Actor

MATRIX = torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.0, 1.0]])


def act(observations: Tensor, noise: Tensor) -> Tensor:
    """Depends on its own noise too, which smoothing holds at 0."""
    return torch.tanh(observations @ MATRIX) + 10.0 * noise


def test_it_acts_by_the_candidate_whose_median_distance_is_smallest() -> None:
    smoothed = smoothed_actor(Actor((2,), act), 3, sigma=0.4, samples=50)
    assert smoothed.noise_shape == (CANDIDATES + 50, 3)
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(4, 3, generator=generator)
    noise = torch.randn(4, *smoothed.noise_shape, generator=generator)
    found = smoothed.act(observations, noise)
    for row in range(4):
        actions = np.tanh((observations[row] + 0.4 * noise[row]).numpy() @ MATRIX.numpy())
        distances = np.linalg.norm(actions[:CANDIDATES, None] - actions[None, CANDIDATES:], axis=-1)
        best = int(np.argmin(np.median(distances, axis=1)))
        np.testing.assert_allclose(found[row].numpy(), actions[best], rtol=1e-5, atol=1e-6)


def test_it_keeps_chunks_of_actions() -> None:
    assert smoothed_actor(Actor((4,), act, action_chunk=2), 3, sigma=0.1).action_chunk == 2


@pytest.mark.parametrize(("sigma", "samples", "name"), [(0.0, 10, "sigma"), (0.1, 0, "smoothing_samples")])
def test_bad_settings_are_refused_by_name(sigma: float, samples: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        smoothed_actor(Actor((2,), act), 3, sigma, samples)
