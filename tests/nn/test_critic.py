"""What every critic promises: add a line to CRITICS for a new one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.attention_components import ClippedSoftmax, HeadGate, SliceGate, SliceMLPGate, SoftCap
from tql_lightning.nn.critic import Critic, MLPCritic, TransformerCritic
from tql_lightning.nn.feedforward import FeedForward, SwiGLU
from tql_lightning.nn.initialisation import LayerNorm, RMSNorm
from tql_lightning.nn.perceiver import PerceiverCritic
from tql_lightning.nn.rational import RationalFeedForward
from tql_lightning.nn.sigma_reparam import SigmaReparam
from tql_lightning.nn.structured import BlockShuffleLinear
from tql_lightning.nn.structured_feedforward import StructuredFeedForward, StructuredSwiGLU
from tql_lightning.nn.transformer import Block, SandwichBlock, TransformerBlock

OBSERVATIONS, ACTIONS, BATCH = 6, 2, 16


def with_attention(
    block: type[TransformerBlock] = TransformerBlock,
    feedforward: Callable[[int, int, float], torch.nn.Module] = FeedForward,
    **parts: Any,
) -> Block:
    return partial(block, attention=partial(EntropyAttention, **parts), feedforward=feedforward)


CRITICS: dict[str, Callable[[int, int], Critic]] = {
    "transformer": partial(TransformerCritic, hidden_dim=64),
    "deep transformer": partial(TransformerCritic, hidden_dim=32, head_dim=8, num_layers=3, num_critics=3),
    "without modalities": partial(TransformerCritic, hidden_dim=32, modality_embeddings=False),
    "sigma-Reparam": partial(TransformerCritic, hidden_dim=32, weight_parametrisation=SigmaReparam),
    "QK-norm": partial(TransformerCritic, hidden_dim=32, block=with_attention(query_key_norm=RMSNorm)),
    "RMSNorm, sandwich, QK-norm, SwiGLU": partial(
        TransformerCritic,
        hidden_dim=32,
        norm=RMSNorm,
        block=with_attention(SandwichBlock, query_key_norm=RMSNorm, feedforward=SwiGLU),
    ),
    "soft cap": partial(TransformerCritic, hidden_dim=32, block=with_attention(score_transform=SoftCap(5.0))),
    "clipped softmax": partial(
        TransformerCritic, hidden_dim=32, block=with_attention(weight_transform=ClippedSoftmax())
    ),
    "gated": partial(TransformerCritic, hidden_dim=32, block=with_attention(gate=HeadGate)),
    "rational feed-forward": partial(
        TransformerCritic, hidden_dim=32, block=with_attention(feedforward=RationalFeedForward)
    ),
    "low-rank feed-forward": partial(
        TransformerCritic, hidden_dim=32, block=with_attention(feedforward=StructuredFeedForward)
    ),
    "block-shuffle SwiGLU": partial(
        TransformerCritic,
        hidden_dim=32,
        mlp_ratio=3,
        block=with_attention(feedforward=partial(StructuredSwiGLU, linear=BlockShuffleLinear, dense_blocks=0)),
    ),
    "gated by slices": partial(TransformerCritic, hidden_dim=64, block=with_attention(gate=SliceGate)),
    "gated by MLPs": partial(TransformerCritic, hidden_dim=64, block=with_attention(gate=SliceMLPGate)),
    "everything": partial(
        TransformerCritic,
        hidden_dim=32,
        norm=RMSNorm,
        block=with_attention(
            SandwichBlock,
            feedforward=SwiGLU,
            query_key_norm=LayerNorm,
            score_transform=SoftCap(5.0),
            weight_transform=ClippedSoftmax(),
            gate=HeadGate,
        ),
        weight_parametrisation=SigmaReparam,
        support=[-2.0, -1.0, 0.0, 1.0],
    ),
    "perceiver": partial(PerceiverCritic, hidden_dim=32, head_dim=8, num_latents=3),
    "perceiver of bins": partial(PerceiverCritic, hidden_dim=32, support=[-2.0, -1.0, 0.0, 1.0]),
    "MLP of bins": partial(MLPCritic, hidden_dims=(32, 32), support=[-2.0, -1.0, 0.0, 1.0]),
    "MLP": partial(MLPCritic, hidden_dims=(32, 32)),
    "MLP without norm": partial(MLPCritic, hidden_dims=(32,), layer_norm=False, num_critics=1),
}


@pytest.fixture(params=CRITICS)
def critic(request: pytest.FixtureRequest) -> Critic:
    torch.manual_seed(0)
    return CRITICS[request.param](OBSERVATIONS, ACTIONS)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, OBSERVATIONS, generator=generator), torch.rand(
        BATCH, ACTIONS, generator=generator
    ) * 2 - 1


def test_values_have_a_column_per_head_and_entropy_a_row_per_layer(critic: Critic) -> None:
    values, entropy, _ = critic(*inputs(), with_entropy=True)
    assert values.shape[0] == BATCH
    assert values.ndim == 2
    if critic.num_layers:
        assert entropy.shape == (critic.num_layers, 2)
        assert critic.num_tokens == 1 + OBSERVATIONS + ACTIONS
    else:
        assert entropy is None


def test_asking_for_entropy_does_not_change_the_values(critic: Critic) -> None:
    critic.eval()  # sigma-Reparam takes a step of power iteration at every pass in training
    values, entropy, _ = critic(*inputs())
    assert entropy is None
    torch.testing.assert_close(values, critic(*inputs(), with_entropy=True).values)


def test_rows_do_not_influence_each_other(critic: Critic) -> None:
    observations, actions = inputs()
    critic.eval()
    torch.testing.assert_close(critic(observations[:3], actions[:3]).values, critic(observations, actions).values[:3])


def test_every_parameter_moves(critic: Critic) -> None:
    before = {name: parameter.detach().clone() for name, parameter in critic.named_parameters()}
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    for _ in range(3):  # a bias of the keys has no gradient, but shares its tensor with those that have
        optimizer.zero_grad()
        values, entropy, _ = critic(*inputs(), with_entropy=True)
        loss = (values - torch.arange(BATCH)[:, None]).square().mean()
        (loss if entropy is None else loss + entropy.mean()).backward()
        optimizer.step()
    still = [name for name, parameter in critic.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []


def test_values_depend_on_every_scalar(critic: Critic) -> None:
    observations, actions = (tensor.requires_grad_() for tensor in inputs())
    critic(observations, actions).values.square().sum().backward()
    for tensor in (observations, actions):
        assert tensor.grad is not None
        assert (tensor.grad.abs().sum(0) > 0).all()


def test_decay_spares_biases_norms_and_the_tokenizer(critic: Critic) -> None:
    decaying = {name for name, parameter in critic.named_parameters() if critic.decays(name, parameter)}
    assert decaying
    factors = ("up.first", "up.second", "down.first", "down.second")  # of structured maps
    positions = {"position"} if isinstance(critic, PerceiverCritic) else set()  # as in PAC's release
    assert all(name.endswith(("weight", "weight.original", *factors)) for name in decaying - positions)
    assert not any("norm" in name or name.startswith("tokenizer") for name in decaying)
    assert all(critic.get_parameter(name).ndim >= 2 for name in decaying)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    critic = TransformerCritic(OBSERVATIONS, ACTIONS, hidden_dim=32, dropout=0.5)
    first, second = critic(*inputs()).values, critic(*inputs()).values
    assert not torch.allclose(first, second, rtol=1e-2)
    critic.eval()
    assert torch.equal(critic(*inputs()).values, critic(*inputs()).values)


SIZES = {128: 419_714, 256: 1_658_626, 512: 6_594_050, 1024: 26_295_298}


@pytest.mark.parametrize("hidden_dim", SIZES)
def test_parameter_counts_are_the_papers(hidden_dim: int) -> None:
    with torch.device("meta"):
        critic = TransformerCritic(37, 5, hidden_dim=hidden_dim)
    assert sum(parameter.numel() for parameter in critic.parameters()) == SIZES[hidden_dim]


def test_initialisation_has_the_releases_spread() -> None:
    torch.manual_seed(0)
    critic = TransformerCritic(37, 5, hidden_dim=256)
    expected = {
        "transformer.blocks.0.attention.qkv.weight": 256**-0.5,
        "transformer.blocks.1.feedforward.3.weight": 1024**-0.5,
        "heads.1.0.weight": 256**-0.5,
        "tokenizer.observation_projection.weight": 1.0,
        "tokenizer.position": 0.02,
    }
    for name, deviation in expected.items():
        assert critic.get_parameter(name).std().item() == pytest.approx(deviation, rel=0.15), name
    biases = [value for name, value in critic.named_parameters() if name.endswith("bias")]
    assert {bool((bias == 0).all()) for bias in biases} == {True}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(TransformerCritic, hidden_dim=100), "critic.hidden_dim: expected a multiple of head_dim=32.*try 96"),
        (partial(TransformerCritic, hidden_dim=1, head_dim=1), "critic.hidden_dim: expected at least 2, found 1"),
        (partial(TransformerCritic, dropout=1.0), "critic.dropout: expected at least 0 and below 1, found 1.0"),
        (partial(TransformerCritic, num_layers=0), "critic.num_layers: expected at least 1, found 0"),
        (partial(TransformerCritic, num_critics=0), "critic.num_critics"),
        (partial(MLPCritic, num_critics=0), "critic.num_critics"),
        (partial(MLPCritic, hidden_dims=()), "hidden_dims: expected one or more sizes"),
    ],
)
def test_bad_sizes_are_refused_by_name(make: Callable[[int, int], Critic], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(OBSERVATIONS, ACTIONS)
