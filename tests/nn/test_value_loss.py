"""Squared error and HL-Gauss: the same targets, the same scale of Q."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch

from tests.toy import fit, toy_model
from tql_lightning.algorithms.tql import TQL, TQLNoise
from tql_lightning.batch import Batch
from tql_lightning.nn.critic import Critic, CriticOutput, MLPCritic, TransformerCritic
from tql_lightning.nn.value_loss import HLGauss, SquaredError, gaussian_bins
from tql_lightning.training.problem import Problem

RANGE = (-200.0, 0.0)


def normal_cdf(x: float) -> float:
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


def test_bin_probabilities_are_the_gaussians_mass_between_edges() -> None:
    edges, target, sigma = [0.0, 1.0, 2.0, 4.0], 1.3, 0.75
    mass = [normal_cdf((edge - target) / sigma) for edge in edges]
    expected = [(high - low) / (mass[-1] - mass[0]) for low, high in pairwise(mass)]
    ours = gaussian_bins(torch.tensor([target]), torch.tensor(edges), sigma)
    torch.testing.assert_close(ours, torch.tensor([expected]))


def test_the_loss_is_torchs_cross_entropy_to_those_probabilities() -> None:
    loss = HLGauss(RANGE, num_bins=20)
    logits, target = torch.randn(5, 2, 20), torch.rand(5) * -200.0
    probabilities = gaussian_bins(target, loss.edges, loss.sigma)
    expected = torch.stack([torch.nn.functional.cross_entropy(logits[:, k], probabilities) for k in range(2)]).mean()
    torch.testing.assert_close(loss(torch.zeros(5, 2), logits, target), expected)


@pytest.mark.parametrize("num_bins", [21, 101])
def test_the_mean_of_the_bins_is_the_target_also_at_the_ends_of_the_range(num_bins: int) -> None:
    loss = HLGauss(RANGE, num_bins)
    targets = torch.linspace(*RANGE, 41)
    means = gaussian_bins(targets, loss.edges, loss.sigma) @ torch.tensor(loss.support)
    width = 200.0 / (num_bins - 6)
    assert loss.sigma == pytest.approx(0.75 * width)
    assert (means - targets).abs().max() < 2e-3 * width


@pytest.mark.slow
@pytest.mark.parametrize(
    "critic",
    [partial(TransformerCritic, hidden_dim=16, head_dim=8), partial(MLPCritic, hidden_dims=(32,))],
    ids=["transformer", "MLP"],
)
def test_both_losses_lead_both_critics_to_the_same_q(critic: partial[Critic]) -> None:
    generator = torch.Generator().manual_seed(0)
    observations, actions = torch.randn(64, 3, generator=generator), torch.rand(64, 1, generator=generator)
    target = -100.0 + 60.0 * torch.tanh(observations[:, 0])
    for value_loss in (SquaredError(RANGE), HLGauss(RANGE)):
        torch.manual_seed(0)
        bins = {} if value_loss.support is None else {"support": value_loss.support}
        model = critic(3, 1, **bins)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(400):
            values, _, logits = model(observations, actions)
            optimizer.zero_grad()
            value_loss(values, logits, target).backward()
            optimizer.step()
        error = (model(observations, actions).values - target[:, None]).abs().mean()
        assert error < 5.0, f"{type(value_loss).__name__}: Q is {error:.1f} off targets between -160 and -40"


def test_values_of_bins_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    critic = MLPCritic(3, 1, hidden_dims=(8,), support=HLGauss(RANGE).support)
    inputs = (torch.randn(4, 3), torch.zeros(4, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, _, logits = critic(*inputs)
    assert values.dtype == torch.float32
    expected = (logits.float().softmax(-1).double() @ torch.tensor(HLGauss(RANGE).support, dtype=torch.float64)).float()
    torch.testing.assert_close(values, expected)


def test_targets_beyond_the_range_are_clipped_to_it() -> None:
    loss, logits = HLGauss(RANGE), torch.randn(1, 2, 101)
    values = torch.zeros(1, 2)
    assert loss(values, logits, torch.tensor([500.0])) == loss(values, logits, torch.tensor([0.0]))


REWARDS = [
    ((-2.0, -1.0), (0.0, 0.0)),
    ((0.0, 0.0), (1.0, 1.0)),
    ((-1.0, 0.5), (-30.0, 2.0)),
    ((0.5, 1.0), (-0.5, 20.0)),
]


@pytest.mark.parametrize(("continuing", "final"), REWARDS)
def test_the_support_is_the_range_of_returns_that_the_rewards_allow(
    continuing: tuple[float, float], final: tuple[float, float]
) -> None:
    discount = 0.8
    low, high = Problem(1, continuing, final).return_range(discount)  # type: ignore[misc]

    def discounted(rewards: Sequence[float]) -> float:
        return sum(discount**step * reward for step, reward in enumerate(rewards))

    short = [
        discounted((*rewards, last))
        for length in range(7)
        for rewards in product(continuing, repeat=length)
        for last in final
    ]
    assert low <= min(short) + 1e-9
    assert high >= max(short) - 1e-9
    extremes = [
        discounted([reward] * length + [last])
        for reward, last in zip(continuing, final, strict=True)
        for length in (0, 200)
    ]
    assert (min(extremes), max(extremes)) == pytest.approx((low, high))


def test_the_support_of_rewards_of_one_kind() -> None:
    assert Problem(1, (-2.0, 0.0)).return_range(0.99) == pytest.approx((-200.0, 0.0))
    final = Problem(1, None, (0.5, 1.0))
    assert final.return_range(0.9) == final.return_range(1.0) == (0.5, 1.0)
    assert Problem(1, (0.0, 1.0)).return_range(1.0) is None
    assert Problem().return_range(0.9) is None
    with pytest.raises(ValueError, match=r"the discount is 1 .*set value_loss.low and value_loss.high"):
        toy_model(value_loss=HLGauss, reward_range=(0.0, 1.0), discount=1.0)
    model = toy_model(value_loss=HLGauss, reward_range=(-1.0, 3.0), discount=0.9)
    assert isinstance(model.value_loss, HLGauss)
    assert (model.value_loss.low, model.value_loss.high) == pytest.approx((-10.0, 30.0))


def test_the_td_loss_of_bins_is_the_cross_entropy_to_the_td_target() -> None:
    model = toy_model(value_loss=partial(HLGauss, num_bins=25), reward_range=(-3.0, 1.0), discount=0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = Batch(
        torch.randn(6, 3), torch.rand(6, 1), -3.0 * torch.rand(6), torch.randn(6, 3), (torch.arange(6) % 3 > 0).float()
    )
    noise = TQLNoise(torch.randn(6, 1), torch.randn(6, 1), torch.rand(6, 1), torch.randn(6, 1), torch.randn(6, 1))
    metrics = model.losses(batch, noise, model.current_inputs()).metrics

    width = 40.0 / (25 - 6)  # returns from -30 to 10, three bins beyond each end
    edges = [-30.0 + width * (index - 3) for index in range(26)]
    centres = torch.tensor([low + width / 2 for low in edges[:-1]])
    with torch.no_grad():
        next_actions = model.one_step_actions(batch.next_observations, noise.next_action)
        next_logits = model.target_critic(batch.next_observations, next_actions).logits
        logits = model.critic(batch.observations, batch.actions).logits
    assert next_logits is not None
    assert logits is not None
    next_values = (next_logits.softmax(-1) @ centres).mean(dim=1)
    total, targets = 0.0, []
    for row in range(6):
        target = float(batch.rewards[row] + 0.9 * batch.masks[row] * next_values[row])
        targets.append(target)
        mass = [normal_cdf((edge - target) / (0.75 * width)) for edge in edges]
        for head in range(2):
            log_probabilities = logits[row, head].log_softmax(-1).tolist()
            shares = [(high - low) / (mass[-1] - mass[0]) for low, high in pairwise(mass)]
            total -= sum(share * log for share, log in zip(shares, log_probabilities, strict=True))
    assert metrics["td_loss"].item() == pytest.approx(total / 12, rel=1e-4)
    assert metrics["target_q_mean"].item() == pytest.approx(sum(targets) / 6, rel=1e-4)
    assert metrics["q_mean"].item() == pytest.approx((logits.softmax(-1) @ centres).mean().item(), rel=1e-4)


def test_a_run_with_bins_trains_and_its_checkpoint_loads(tmp_path: Path) -> None:
    model = toy_model(value_loss=partial(HLGauss, num_bins=31), reward_range=(-3.0, 3.0), discount=0.9)
    before = {name: parameter.clone() for name, parameter in model.critic.named_parameters()}
    fit(tmp_path, model, updates=5).save_checkpoint(tmp_path / "bins.ckpt")
    assert [name for name, parameter in model.critic.named_parameters() if torch.equal(parameter, before[name])] == []
    loaded = TQL.load_from_checkpoint(tmp_path / "bins.ckpt", weights_only=True)
    inputs = (torch.randn(4, 3), torch.zeros(4, 1))
    torch.testing.assert_close(loaded.critic(*inputs).values, model.critic(*inputs).values)


class ValuesOnly(Critic):
    """A user's critic that knows nothing of bins."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(observation_dim + action_dim, 2)

    def forward(self, observations: torch.Tensor, actions: torch.Tensor, *, with_entropy: bool = False) -> CriticOutput:
        return CriticOutput(self.linear(torch.cat([observations, actions], dim=-1)), None)


def test_a_critic_of_two_arguments_works_with_squared_error_and_is_refused_with_bins() -> None:
    assert toy_model(critic=ValuesOnly).value_loss.support is None
    with pytest.raises(ValueError, match="value_loss HLGauss needs a critic that takes support; ValuesOnly does not"):
        toy_model(critic=ValuesOnly, value_loss=HLGauss, reward_range=(0.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"return_range": None},
            "HLGauss: expected the range of returns, found none: .*set value_loss.low and value_loss.high",
        ),
        ({"num_bins": 7}, r"HLGauss.num_bins: expected at least 8, found 7"),
        ({"sigma": 0.0}, r"HLGauss.sigma: expected a finite number above 0"),
        ({"sigma": math.nan}, r"HLGauss.sigma: expected a finite number above 0, found nan"),
        ({"low": 1.0}, "HLGauss: expected finite low below high, found 1.0 and 0.0"),
        ({"high": math.inf}, "HLGauss: expected finite low below high, found -200.0 and inf"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HLGauss(**{"return_range": RANGE, **settings})  # type: ignore[arg-type]
