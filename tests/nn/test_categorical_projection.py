"""The categorical projection against C51's loop over atoms, and what other value losses do with a bootstrap."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from tql_lightning.nn.categorical import CategoricalProjection, share_between_neighbours
from tql_lightning.nn.value_loss import Bootstrap, HLGauss, SquaredError

LOW, HIGH, ATOMS = -10.0, 0.0, 11


def bootstrap(rewards: Tensor, discounts: Tensor, logits: Tensor, aggregation: Literal["mean", "min"]) -> Bootstrap:
    values = (logits.softmax(-1) * torch.linspace(LOW, HIGH, ATOMS)).sum(-1)
    return Bootstrap(rewards, discounts, values, logits, aggregation)


def projected(probabilities: list[float], reward: float, discount: float) -> list[float]:
    """C51's algorithm 1, in Python."""
    width, out = (HIGH - LOW) / (ATOMS - 1), [0.0] * ATOMS
    for j, probability in enumerate(probabilities):
        position = (min(max(reward + discount * (LOW + j * width), LOW), HIGH) - LOW) / width
        low, high = math.floor(position), math.ceil(position)
        out[low] += probability * (high - position if high > low else 1.0)
        out[high] += probability * (position - low)
    return out


@pytest.mark.parametrize("aggregation", ["mean", "min"])
def test_the_target_is_c51s_projection_of_the_heads_distribution(aggregation: Literal["mean", "min"]) -> None:
    torch.manual_seed(0)
    loss = CategoricalProjection((LOW, HIGH), ATOMS)
    rewards = torch.tensor([-1.0, -0.3, -4.0, 2.0, -20.0])  # the last two are clipped
    discounts = torch.tensor([0.99, 0.5, 0.0, 0.99, 0.99])
    given = bootstrap(rewards, discounts, torch.randn(5, 2, ATOMS), aggregation)
    assert given.logits is not None
    ours = loss.target_probabilities(given, given.logits)
    for row in range(5):
        heads = given.logits[row].softmax(-1)
        taken = heads.mean(0) if aggregation == "mean" else heads[given.values[row].argmin()]
        expected = projected(taken.tolist(), rewards[row].item(), discounts[row].item())
        torch.testing.assert_close(ours[row], torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_the_loss_is_torchs_cross_entropy_to_the_target() -> None:
    torch.manual_seed(0)
    loss = CategoricalProjection((LOW, HIGH), ATOMS)
    given = bootstrap(torch.rand(4) - 1, torch.full((4,), 0.9), torch.randn(4, 1, ATOMS), "mean")
    assert given.logits is not None
    logits = torch.randn(4, 3, ATOMS)
    target = loss.target_probabilities(given, given.logits)
    expected = torch.stack([torch.nn.functional.cross_entropy(logits[:, k], target) for k in range(3)]).mean()
    torch.testing.assert_close(loss.bootstrapped(logits.mean(-1), logits, torch.zeros(4), given), expected)


def test_no_gradient_reaches_the_target_critic() -> None:
    loss = CategoricalProjection((LOW, HIGH), ATOMS)
    logits = torch.randn(4, 2, ATOMS, requires_grad=True)
    next_logits = torch.randn(4, 2, ATOMS, requires_grad=True)
    given = bootstrap(torch.zeros(4), torch.ones(4), next_logits, "mean")
    loss.bootstrapped(logits.mean(-1), logits, torch.zeros(4), given).backward()
    assert logits.grad is not None
    assert next_logits.grad is None


def test_a_number_as_target_lies_on_its_two_atoms() -> None:
    loss = CategoricalProjection((LOW, HIGH), ATOMS)
    logits = torch.randn(2, 1, ATOMS)
    expected = torch.zeros(2, ATOMS)
    expected[0, 6], expected[0, 7] = 0.75, 0.25  # -3.75 between -4 and -3
    expected[1, 10] = 1.0  # clipped
    cross_entropy = torch.nn.functional.cross_entropy(logits[:, 0], expected)
    torch.testing.assert_close(loss(logits.mean(-1), logits, torch.tensor([-3.75, 5.0])), cross_entropy)


def test_what_a_gpu_adds_in_fixed_order_is_the_same_sum() -> None:
    torch.manual_seed(0)
    weights, positions = torch.rand(3, 50), torch.rand(3, 50) * 10.0
    positions[:, :3] = torch.tensor([0.0, 10.0, 4.0])
    numbers = torch.arange(11.0)
    shares = (1.0 - (positions.unsqueeze(-1) - numbers).abs()).clamp(min=0.0)
    torch.testing.assert_close(
        share_between_neighbours(weights, positions, 11), (weights.unsqueeze(-1) * shares).sum(1)
    )


@pytest.mark.parametrize("loss", [SquaredError(None), HLGauss((LOW, HIGH), 17)], ids=["squared error", "HL-Gauss"])
def test_other_losses_read_only_the_mean_of_the_target(loss: SquaredError | HLGauss) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(4, 2, 17), -10.0 * torch.rand(4)
    given = bootstrap(torch.zeros(4), torch.ones(4), torch.randn(4, 2, ATOMS), "mean")
    values = logits.mean(-1)
    assert torch.equal(loss.bootstrapped(values, logits, target, given), loss(values, logits, target))


def test_its_support_is_the_range_of_the_data_unless_given() -> None:
    assert CategoricalProjection((-4.0, 0.0), 5).support == [-4.0, -3.0, -2.0, -1.0, 0.0]
    assert CategoricalProjection(None, 3, low=-200.0, high=0.0).support == [-200.0, -100.0, 0.0]


def test_what_it_cannot_work_with_is_refused() -> None:
    with pytest.raises(ValueError, match=r"CategoricalProjection: expected the range of returns, found none"):
        CategoricalProjection(None)
    with pytest.raises(ValueError, match=r"CategoricalProjection: expected finite low below high, found 0.0 and 0.0"):
        CategoricalProjection((0.0, 0.0))
    with pytest.raises(ValueError, match=r"CategoricalProjection.num_atoms: expected at least 2, found 1"):
        CategoricalProjection((-1.0, 0.0), 1)
    loss = CategoricalProjection((LOW, HIGH), ATOMS)
    with pytest.raises(ValueError, match="expected a critic that gives logits of the atoms, found only values"):
        loss(torch.zeros(2, 1), None, torch.zeros(2))
    without = Bootstrap(torch.zeros(2), torch.ones(2), torch.zeros(2, 1), None, "mean")
    with pytest.raises(ValueError, match="expected a target critic that gives logits, found only values"):
        loss.bootstrapped(torch.zeros(2, 1), torch.zeros(2, 1, ATOMS), torch.zeros(2), without)
