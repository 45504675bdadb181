"""What plugs into the transformer, each against torch's own or a few lines of NumPy."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from tests.toy import toy_model
from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.attention_components import ClippedSoftmax, HeadGate, SliceGate, SliceMLPGate, SoftCap
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.feedforward import FeedForward, SwiGLU
from tql_lightning.nn.initialisation import LayerNorm, RMSNorm, StackedLinear
from tql_lightning.nn.sigma_reparam import SigmaReparam
from tql_lightning.nn.transformer import SandwichBlock, TransformerBlock

HIDDEN, HEADS, TOKENS = 12, 3, 5


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(4, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def projections(attention: EntropyAttention, tokens: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values of all heads, (3, B, h, n, e), in NumPy."""
    mixed = array(tokens) @ array(attention.qkv.weight).T + array(attention.qkv.bias)
    query, key, value = mixed.reshape(4, TOKENS, 3, HEADS, HIDDEN // HEADS).transpose(2, 0, 3, 1, 4)
    return query, key, value


def output(attention: EntropyAttention, heads: np.ndarray) -> np.ndarray:
    joined = heads.transpose(0, 2, 1, 3).reshape(4, TOKENS, HIDDEN)
    result: np.ndarray = joined @ array(attention.out.weight).T + array(attention.out.bias)
    return result


def assert_attention(attention: EntropyAttention, tokens: Tensor, expected: np.ndarray, weights: np.ndarray) -> None:
    """Output and entropy of all queries, and the first row alone."""
    attended, entropy = attention(tokens, with_entropy=True)
    np.testing.assert_allclose(array(attended), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(array(entropy), -(weights * np.log(weights)).sum(-1), rtol=1e-4, atol=1e-6)
    for with_entropy in (False, True):
        first, _ = attention(tokens, value_only=True, with_entropy=with_entropy)
        np.testing.assert_allclose(array(first), expected[:, :1], rtol=1e-4, atol=1e-6)


def make_attention(**parts: object) -> EntropyAttention:
    torch.manual_seed(0)
    return EntropyAttention(HIDDEN, HEADS, **parts)  # type: ignore[arg-type]


def test_query_key_norm_normalises_each_head_before_the_product(tokens: Tensor) -> None:
    attention = make_attention(query_key_norm=RMSNorm)
    assert isinstance(attention.query_norm, RMSNorm)
    assert isinstance(attention.key_norm, RMSNorm)
    with torch.no_grad():
        attention.query_norm.weight.uniform_(0.5, 2.0)
        attention.key_norm.weight.uniform_(0.5, 2.0)
    query, key, value = projections(attention, tokens)
    query = query / np.sqrt((query**2).mean(-1, keepdims=True) + 1e-6) * array(attention.query_norm.weight)
    key = key / np.sqrt((key**2).mean(-1, keepdims=True) + 1e-6) * array(attention.key_norm.weight)
    weights = softmax(query @ key.swapaxes(-1, -2) / math.sqrt(HIDDEN // HEADS))
    assert_attention(attention, tokens, output(attention, weights @ value), weights)


def test_soft_cap_bounds_the_scores(tokens: Tensor) -> None:
    attention = make_attention(score_transform=SoftCap(0.3))
    query, key, value = projections(attention, tokens)
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(HIDDEN // HEADS)
    assert np.abs(scores).max() > 0.3
    weights = softmax(0.3 * np.tanh(scores / 0.3))
    assert_attention(attention, tokens, output(attention, weights @ value), weights)


def test_clipped_softmax_reaches_zero_and_reports_the_softmaxs_entropy(tokens: Tensor) -> None:
    attention = make_attention(weight_transform=ClippedSoftmax(alpha=4.0, zeta=1.1))
    query, key, value = projections(attention, 3.0 * tokens)
    weights = softmax(query @ key.swapaxes(-1, -2) / math.sqrt(HIDDEN // HEADS))
    gamma = -4.0 / TOKENS
    clipped = np.clip((1.1 - gamma) * weights + gamma, 0.0, 1.0)
    assert (clipped == 0.0).any()
    assert (clipped == 1.0).any()
    assert_attention(attention, 3.0 * tokens, output(attention, clipped @ value), weights)


@pytest.mark.parametrize("num_tokens", [2, 5, 43, 500])
def test_clipped_softmax_leaves_uniform_attention_open(num_tokens: int) -> None:
    uniform = torch.full((num_tokens,), 1.0 / num_tokens, requires_grad=True)
    clipped = ClippedSoftmax()(uniform)
    assert (clipped > 0.4 / num_tokens).all()
    (gradient,) = torch.autograd.grad(clipped.sum(), uniform)
    assert (gradient > 0.0).all()


def test_gates_scale_each_heads_output_by_a_sigmoid_of_the_asking_token(tokens: Tensor) -> None:
    attention = make_attention(gate=partial(HeadGate, initial=0.25))
    assert isinstance(attention.gate, HeadGate)
    np.testing.assert_allclose(array(attention.gate(torch.zeros(1, 1, HIDDEN))), 0.25, rtol=1e-6)
    query, key, value = projections(attention, tokens)
    weights = softmax(query @ key.swapaxes(-1, -2) / math.sqrt(HIDDEN // HEADS))
    logits = array(tokens) @ array(attention.gate.logits.weight).T + array(attention.gate.logits.bias)
    gates = 1.0 / (1.0 + np.exp(-logits))
    assert_attention(attention, tokens, output(attention, weights @ value * gates.swapaxes(1, 2)[..., None]), weights)


def slices(tokens: Tensor) -> np.ndarray:
    """(B, n, H) -> (h, B, n, e): the part of a token that belongs to each head."""
    return array(tokens).reshape(4, TOKENS, HEADS, HIDDEN // HEADS).transpose(2, 0, 1, 3)


def test_a_slice_gate_reads_the_heads_own_features(tokens: Tensor) -> None:
    attention = make_attention(gate=SliceGate)
    gate = attention.gate
    assert isinstance(gate, SliceGate)
    np.testing.assert_allclose(array(gate(torch.zeros(1, 1, HIDDEN))), 0.25, rtol=1e-6)
    query, key, value = projections(attention, tokens)
    weights = softmax(query @ key.swapaxes(-1, -2) / math.sqrt(HIDDEN // HEADS))
    logits = [x @ w + b for x, w, b in zip(slices(tokens), array(gate.weight), array(gate.bias), strict=True)]
    gates = 1.0 / (1.0 + np.exp(-np.stack(logits, axis=1)))
    assert_attention(attention, tokens, output(attention, weights @ value * gates[..., None]), weights)


def test_a_slice_mlp_gate_has_a_hidden_layer_for_each_head(tokens: Tensor) -> None:
    attention = make_attention(gate=SliceMLPGate)
    gate = attention.gate
    assert isinstance(gate, SliceMLPGate)
    np.testing.assert_allclose(array(gate(torch.zeros(1, 1, HIDDEN))), 0.5, rtol=1e-6)
    with torch.no_grad():
        gate.inner_bias.uniform_(-1.0, 1.0)
    query, key, value = projections(attention, tokens)
    weights = softmax(query @ key.swapaxes(-1, -2) / math.sqrt(HIDDEN // HEADS))
    logits = [
        np.maximum(x @ array(gate.inner_weight[head]).T + array(gate.inner_bias[head]), 0.0) @ array(gate.weight[head])
        + array(gate.bias[head])
        for head, x in enumerate(slices(tokens))
    ]
    gates = 1.0 / (1.0 + np.exp(-np.stack(logits, axis=1)))
    assert_attention(attention, tokens, output(attention, weights @ value * gates[..., None]), weights)


@pytest.mark.parametrize(("gate", "count"), [(HeadGate, 516), (SliceGate, 132), (SliceMLPGate, 1092)])
def test_gates_have_the_authors_number_of_weights(gate: type[nn.Module], count: int) -> None:
    assert sum(parameter.numel() for parameter in gate(128, 4).parameters()) == count


@pytest.mark.parametrize(
    ("gate", "mean", "spread"),
    [
        (HeadGate, 0.50, 0.21),
        (partial(HeadGate, weights="torch"), 0.50, 0.14),
        (SliceGate, 0.26, 0.11),
        (partial(SliceGate, initial=0.5, weights="lecun"), 0.50, 0.21),
    ],
)
def test_gates_start_as_far_open_and_as_spread_as_their_weights_make_them(
    gate: type[nn.Module], mean: float, spread: float
) -> None:
    """For tokens of unit variance."""
    generator = torch.manual_seed(0)
    gates = gate(2048, 64)(torch.randn(4, 64, 2048, generator=generator)).detach()
    assert float(gates.mean()) == pytest.approx(mean, abs=0.01)
    assert float(gates.std()) == pytest.approx(spread, abs=0.01)


def test_biases_of_gates_do_not_decay() -> None:
    attention = partial(EntropyAttention, gate=SliceMLPGate)
    critic = TransformerCritic(3, 1, hidden_dim=16, head_dim=8, block=partial(TransformerBlock, attention=attention))
    gates = [
        name for name, parameter in critic.named_parameters() if ".gate." in name and critic.decays(name, parameter)
    ]
    assert {name.rpartition(".")[2] for name in gates} == {"weight", "inner_weight"}


def test_swiglu_is_a_gated_product_with_as_many_weights_as_the_plain_layer(tokens: Tensor) -> None:
    torch.manual_seed(0)
    swiglu = SwiGLU(HIDDEN, 4 * HIDDEN, dropout=0.0)
    gate = array(tokens) @ array(swiglu.gate.weight).T
    up = array(tokens) @ array(swiglu.up.weight).T
    expected = (gate / (1.0 + np.exp(-gate)) * up) @ array(swiglu.down.weight).T
    np.testing.assert_allclose(array(swiglu(tokens)), expected, rtol=1e-4, atol=1e-6)
    matrices = [sum(p.numel() for p in m.parameters() if p.ndim > 1) for m in (swiglu, FeedForward(12, 48, 0.0))]
    assert matrices[0] == matrices[1]


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_a_sandwich_block_normalises_both_branches_before_they_are_added(norm: type, tokens: Tensor) -> None:
    torch.manual_seed(0)
    block = SandwichBlock(HIDDEN, HEADS, 2 * HIDDEN, 0.0, norm)
    norms = [module for module in block.modules() if isinstance(module, norm)]
    assert len(norms) == 4  # none is shared
    with torch.no_grad():
        for parameter in (parameter for module in norms for parameter in module.parameters()):
            parameter.uniform_(0.5, 2.0)
    ours, _ = block(tokens, value_only=False, with_entropy=False)

    def normalised(x: np.ndarray, module: nn.Module) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True) if norm is LayerNorm else x
        scale, *shift = [array(parameter) for parameter in module.parameters()]
        result: np.ndarray = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + sum(shift)
        return result

    def through(module: nn.Module, x: np.ndarray) -> np.ndarray:
        result = module(torch.as_tensor(x, dtype=torch.float32))
        return array(result[0] if isinstance(result, tuple) else result)

    x = array(tokens)
    attended = through(block.attention, normalised(x, block.attention_norm))
    x = x + normalised(attended, block.attention_output)
    fed = through(block.feedforward, normalised(x, block.feedforward_norm))
    x = x + normalised(fed, block.feedforward_output)
    np.testing.assert_allclose(array(ours), x, rtol=1e-4, atol=1e-5)


def test_a_sandwich_blocks_dropout_stands_after_its_norm(tokens: Tensor) -> None:
    torch.manual_seed(0)
    block = SandwichBlock(HIDDEN, HEADS, 2 * HIDDEN, 0.5)
    after_attention: list[Tensor] = []
    block.feedforward_norm.register_forward_pre_hook(lambda _, inputs: after_attention.append(inputs[0]))
    block(tokens, value_only=False, with_entropy=False)
    dropped = (after_attention[0] == tokens).float().mean()
    assert 0.3 < dropped < 0.7


def test_rms_norm_is_torchs_and_float32_under_autocast(tokens: Tensor) -> None:
    ours, theirs = RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN, eps=1e-6)
    assert torch.equal(ours(tokens), theirs(tokens))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ours(tokens.bfloat16())
    assert torch.equal(mixed, theirs(tokens.bfloat16().float()))
    assert ours.double()(tokens.double()).dtype == torch.float64


def test_sigma_reparam_is_torchs_spectral_norm_times_gamma() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 8)
    reparam = SigmaReparam(layer)
    with torch.no_grad():
        reparam.gamma.fill_(1.7)
    weight = layer.weight.detach().clone()
    theirs = spectral_norm(nn.Linear(6, 8), n_power_iterations=200)
    with torch.no_grad():
        theirs.parametrizations.weight.original.copy_(weight)  # type: ignore[union-attr, operator]
        for _ in range(200):
            ours = reparam(weight)
        torch.testing.assert_close(ours, 1.7 * theirs.weight, rtol=1e-4, atol=1e-6)
    singular = np.linalg.svd(array(ours), compute_uv=False)
    assert singular[0] == pytest.approx(1.7, rel=1e-4)


def test_sigma_reparam_treats_stacked_maps_one_by_one() -> None:
    torch.manual_seed(0)
    layer = StackedLinear(6, 6, stacked=3)
    with torch.no_grad():
        layer.weight[:6] *= 10.0
    reparam = SigmaReparam(layer)
    for _ in range(300):
        reparam(layer.weight)
    singular = [np.linalg.svd(part, compute_uv=False)[0] for part in array(reparam(layer.weight)).reshape(3, 6, 6)]
    np.testing.assert_allclose(singular, 1.0, rtol=1e-4)


def test_sigma_reparam_holds_every_linear_layer_of_the_blocks_at_its_gammas() -> None:
    torch.manual_seed(0)
    critic = TransformerCritic(3, 1, hidden_dim=16, head_dim=8, weight_parametrisation=SigmaReparam)
    layers = [module for module in critic.transformer.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 8  # of each of two blocks: query, key and value in one, output, two of the feed-forward layer
    for layer in layers:
        assert parametrize.is_parametrized(layer, "weight")
        reparam = layer.parametrizations.weight[0]  # type: ignore[index, union-attr]
        assert isinstance(reparam, SigmaReparam)
        with torch.no_grad():
            reparam.gamma.uniform_(0.5, 2.0).neg_()
            for _ in range(300):
                weight = layer.weight
        parts = np.split(array(weight), reparam.stacked)
        singular = [np.linalg.svd(part, compute_uv=False)[0] for part in parts]
        np.testing.assert_allclose(singular, -array(reparam.gamma), rtol=1e-3)
    outside = [module for module in critic.modules() if isinstance(module, nn.Linear) and module not in layers]
    assert {parametrize.is_parametrized(module) for module in outside} == {False}


def test_sigma_reparams_gradient_is_that_of_the_exact_norm() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 4)
    reparam = SigmaReparam(layer)
    for _ in range(500):
        reparam(layer.weight)
    direction = torch.randn(4, 5)
    (ours,) = torch.autograd.grad((reparam(layer.weight) * direction).sum(), layer.weight)
    exact = layer.weight / torch.linalg.matrix_norm(layer.weight, ord=2)
    (expected,) = torch.autograd.grad((exact * direction).sum(), layer.weight)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_sigma_reparam_is_exact_under_autocast() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 8)
    reparam = SigmaReparam(layer).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = reparam(layer.weight)
    assert torch.equal(mixed, reparam(layer.weight))


def test_sigma_reparam_follows_singular_vectors_in_training_only() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 8)
    reparam = SigmaReparam(layer)
    with torch.no_grad():
        layer.weight.normal_()
    before = reparam.left.clone()
    reparam.eval()(layer.weight)
    assert torch.equal(reparam.left, before)
    reparam.train()(layer.weight)
    assert not torch.equal(reparam.left, before)


def test_the_target_critic_follows_the_singular_vectors() -> None:
    critic = partial(TransformerCritic, hidden_dim=16, head_dim=8, weight_parametrisation=SigmaReparam)
    model = toy_model(critic=critic)
    model.critic(torch.randn(4, 3), torch.randn(4, 1))
    name = "transformer.blocks.0.attention.qkv.parametrizations.weight.0.left"
    assert not torch.equal(model.critic.get_buffer(name), model.target_critic.get_buffer(name))
    model.before_step({})
    assert torch.equal(model.critic.get_buffer(name), model.target_critic.get_buffer(name))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(SoftCap, 0.0), r"SoftCap.cap: expected a finite number above 0, found 0.0"),
        (partial(SoftCap, math.nan), r"SoftCap.cap: expected a finite number above 0, found nan"),
        (partial(ClippedSoftmax, alpha=math.nan), r"ClippedSoftmax.alpha: expected at least 0 and finite, found nan"),
        (partial(ClippedSoftmax, zeta=math.inf), r"ClippedSoftmax.zeta: expected at least 1 and finite, found inf"),
        (partial(ClippedSoftmax, alpha=-1.0), r"ClippedSoftmax.alpha: expected at least 0"),
        (partial(ClippedSoftmax, zeta=0.9), r"ClippedSoftmax.zeta: expected at least 1"),
        (partial(HeadGate, 8, 2, initial=1.0), r"gate.initial: expected between 0 and 1"),
        (partial(SliceGate, 8, 2, weights="zeros"), r"gate.weights: expected lecun or torch, found zeros"),
        (partial(TransformerBlock, 8, 3, 8, 0.0), r"num_heads: expected a divisor"),
    ],
)
def test_bad_settings_are_refused_by_name(make: partial[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
