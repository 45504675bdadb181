"""What the benchmarks measure, on functions whose answer is known."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from benchmarks.attention import main as attention_benchmark
from benchmarks.attention import peak_bytes
from benchmarks.collapse import STEP, smoothness, tail
from benchmarks.harness import Peak, alternate, count_flops
from tests.toy import toy_dataset, toy_model
from tql_lightning.nn.chunked_attention import BLOCK_ELEMENTS
from tql_lightning.nn.critic import Critic, CriticOutput


class Parabola(Critic):
    """Q(s, a) = s_0 + 3 a^2 for actions of one dimension."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.curvature = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, observations: Tensor, actions: Tensor, *, with_entropy: bool = False) -> CriticOutput:
        return CriticOutput(observations[:, :1] + self.curvature * actions.square(), None)


def test_roughness_is_the_second_difference_over_the_spread_of_q() -> None:
    dataset, model = toy_dataset(), toy_model(critic=Parabola)
    observations, actions = torch.as_tensor(dataset.observations), torch.as_tensor(dataset.actions)
    actions = actions.clamp(STEP - 1, 1 - STEP)
    spread = (observations[:, :1] + 3 * actions.square()).std().item()
    slope, roughness = smoothness(model, dataset)
    assert roughness == pytest.approx(6 * STEP**2 / spread, rel=1e-3)
    assert slope == pytest.approx(6 * actions.abs().mean().item() * STEP / spread, rel=1e-3)


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


def test_the_weight_of_attention_is_found_and_grows_with_tokens_as_the_implementation_promises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", 256)
    sizes = ["--heads", "2", "--head-dim", "4", "--time-tokens", "5", "--memory-tokens", "64", "128", "--rounds", "2"]
    attention_benchmark([*sizes, "--elements", "100", "--json"])
    fields = json.loads(capsys.readouterr().out)
    assert fields["chunked_ratio/5"] > 0.0
    assert fields["plain_mib/128"] / fields["plain_mib/64"] > 3.5
    assert fields["chunked_mib/128"] / fields["chunked_mib/64"] <= 2.0  # linear, and one block that does not grow


def test_the_peak_is_the_most_that_is_held_at_once() -> None:
    def call() -> None:
        first = torch.empty(1000)
        del first
        second, third = torch.empty(500), torch.empty(750)
        del second, third

    assert peak_bytes(call, "cpu") == 4 * 1250
