"""Q-Transformer's network: what each dimension sees, and acting with kept keys and values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tql_lightning.nn.autoregressive import AutoregressiveCritic, causal_attention_with_entropy

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "a token per scalar": {"state_tokens": "each", "modality_embeddings": True},
    "without norms": {"layer_norm": False, "final_norm": False, "query_key_norm": False},
    "one dimension": {"action_dim": 1},
}


@pytest.fixture(params=VARIANTS)
def critic(request: pytest.FixtureRequest) -> AutoregressiveCritic:
    torch.manual_seed(0)
    sizes = {"observation_dim": 5, "action_dim": 4, "num_bins": 6, "hidden_dim": 16, "head_dim": 8}
    made = AutoregressiveCritic(**(sizes | VARIANTS[request.param]))
    for parameter in made.parameters():  # large enough for choices to differ
        nn.init.normal_(parameter, std=0.3)
    return made


def some_bins(critic: AutoregressiveCritic) -> torch.Tensor:
    return torch.randint(0, critic.num_bins, (7, critic.action_dim), generator=torch.Generator().manual_seed(1))


def test_a_dimension_sees_only_the_bins_before_it(critic: AutoregressiveCritic) -> None:
    observations, bins = torch.randn(7, 5), some_bins(critic)
    before = critic(observations, bins).logits
    for dimension in range(critic.action_dim):
        changed = bins.clone()
        changed[:, dimension] = (bins[:, dimension] + 1) % critic.num_bins
        after = critic(observations, changed).logits
        torch.testing.assert_close(after[:, : dimension + 1], before[:, : dimension + 1])
        for later in range(dimension + 1, critic.action_dim):
            assert not torch.allclose(after[:, later], before[:, later]), (dimension, later)


def test_kept_keys_and_values_choose_what_whole_passes_choose(critic: AutoregressiveCritic) -> None:
    observations = torch.randn(7, 5)
    bins = torch.zeros(7, critic.action_dim, dtype=torch.long)
    for dimension in range(critic.action_dim):
        logits = critic(observations, bins).logits
        bins[:, dimension] = logits[:, dimension].argmax(dim=-1)
    chosen = critic(observations)
    assert torch.equal(chosen.bins, bins)
    torch.testing.assert_close(chosen.logits, critic(observations, bins).logits, rtol=1e-4, atol=1e-4)


def test_choosing_can_stop_after_the_first_dimensions(critic: AutoregressiveCritic) -> None:
    observations = torch.randn(7, 5)
    every, first = critic(observations), critic(observations, dimensions=1)
    assert torch.equal(first.bins, every.bins[:, :1])
    torch.testing.assert_close(first.logits, every.logits[:, :1])


def test_of_equal_values_the_first_bin_is_chosen(critic: AutoregressiveCritic) -> None:
    nn.init.zeros_(critic.output)
    nn.init.zeros_(critic.output_bias)
    with torch.no_grad():
        critic.output_bias[:, [2, 4]] = 1.0
    assert torch.equal(critic(torch.randn(3, 5)).bins, torch.full((3, critic.action_dim), 2))


def test_entropies_change_nothing_and_belong_to_what_each_token_sees(critic: AutoregressiveCritic) -> None:
    observations, bins = torch.randn(7, 5), some_bins(critic)
    logits, _, entropy = critic(observations, bins, with_entropy=True)
    torch.testing.assert_close(logits, critic(observations, bins).logits, rtol=1e-4, atol=1e-4)
    assert entropy is not None
    tokens = critic.num_state_tokens + critic.action_dim
    assert entropy.shape == (2, 7, 2, tokens)
    assert torch.equal(entropy[..., 0], torch.zeros(2, 7, 2))
    largest = torch.tensor([math.log(position + 1) for position in range(tokens)])
    assert (entropy <= largest + 1e-5).all()
    assert (entropy[..., 1:] > 0.0).all()


def test_every_weight_moves(critic: AutoregressiveCritic) -> None:
    logits = critic(torch.randn(64, 5), torch.randint(0, 6, (64, critic.action_dim))).logits
    logits.sigmoid().square().sum().backward()
    assert [name for name, p in critic.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_uniform_attention_over_what_is_seen_has_the_largest_entropy() -> None:
    _, entropy = causal_attention_with_entropy(
        torch.zeros(1, 1, 4, 2), torch.randn(1, 1, 4, 2), torch.randn(1, 1, 4, 2)
    )
    torch.testing.assert_close(entropy[0, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]).log())


def test_hidden_keys_pass_no_nan_backwards() -> None:
    queries = (1e4 * torch.randn(1, 1, 3, 2)).requires_grad_()
    _, entropy = causal_attention_with_entropy(queries, torch.randn(1, 1, 3, 2), torch.randn(1, 1, 3, 2))
    entropy.sum().backward()
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize(
    ("hidden_dim", "published"), [(128, 476_736), (256, 1_739_456), (512, 6_624_192), (1024, 25_830_848)]
)
def test_it_has_the_releases_size(hidden_dim: int, published: int) -> None:
    with torch.device("meta"):
        critic = AutoregressiveCritic(37, 5, hidden_dim=hidden_dim)
    assert sum(parameter.numel() for parameter in critic.parameters()) == published


def test_only_matrices_of_linear_layers_decay() -> None:
    critic = AutoregressiveCritic(5, 3, hidden_dim=32, modality_embeddings=True)
    decayed = {name for name, parameter in critic.named_parameters() if critic.decays(name, parameter)}
    layers = ("qkv", "out", "feedforward.0", "feedforward.3")
    assert decayed == {"state_projection.weight"} | {
        f"blocks.{block}.{layer}.weight" for block in range(2) for layer in layers
    }


def test_initial_values_are_the_sigmoid_of_the_initial_logit() -> None:
    torch.manual_seed(0)
    logits = AutoregressiveCritic(5, 3)(torch.randn(50, 5), torch.zeros(50, 3, dtype=torch.long)).logits
    assert logits.sigmoid().mean().item() == pytest.approx(1.0 / (1.0 + math.exp(2.5)), abs=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_bins": 1}, "critic.num_bins: expected at least 2, found 1"),
        ({"hidden_dim": 48}, "critic.hidden_dim: expected a multiple of head_dim=32, found 48"),
        ({"state_tokens": "all"}, "critic.state_tokens: expected one or each, found all"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoregressiveCritic(4, 3, **settings)
