"""Temperatures with damping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor

from tql_lightning.algorithms.critics import entropy_inputs, fit_critic
from tql_lightning.nn.critic import CriticOutput
from tql_lightning.nn.temperature import AttentionTemperature

TARGETS = [(1.0, 0.8)]


def entropy_gradient(entropy: Tensor, damping: float, whole: Tensor | None = None) -> Tensor:
    """Gradient of the entropy loss by the entropies, (1, 2); ``whole`` are the whole batch's entropies."""
    temperature = AttentionTemperature(1, 10, targets=TARGETS, initial=2.0, damping=damping)
    entropy = entropy.clone().requires_grad_()
    output = CriticOutput(torch.zeros(3, 2), entropy, None)
    fit = fit_critic(
        output,
        torch.zeros(3),
        lambda values, *_: values.sum(),
        temperature,
        entropy_inputs(temperature, 0),
        whole_mean=lambda mean: mean if whole is None else whole,
    )
    (gradient,) = torch.autograd.grad(fit.metrics["entropy_loss"], entropy)
    return gradient


def test_damping_adds_to_the_weight_below_the_target_and_takes_off_above_it() -> None:
    entropy = tensor([[0.9, 1.1]])  # 0.1 below, 0.3 above
    torch.testing.assert_close(entropy_gradient(entropy, 0.0), tensor([[-1.0, -1.0]]))  # -alpha / 2, two entropies
    torch.testing.assert_close(entropy_gradient(entropy, 10.0), tensor([[-1.5, 0.5]]))


def test_damping_follows_the_entropy_of_the_whole_batch() -> None:
    gradient = entropy_gradient(tensor([[0.9, 1.1]]), 10.0, whole=tensor([[1.0, 0.8]]))
    torch.testing.assert_close(gradient, tensor([[-1.0, -1.0]]))


@pytest.mark.parametrize("damping", [-1.0, math.inf, math.nan])
def test_damping_below_zero_or_not_finite_is_refused(damping: float) -> None:
    with pytest.raises(ValueError, match="damping: expected a finite number of at least 0"):
        AttentionTemperature(1, 10, targets=TARGETS, damping=damping)
