"""Which implementation `EntropyAttention` takes, and that each keeps its contract inside the module."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.nn.attention_reference import inputs
from tql_lightning.nn.attention import EntropyAttention, Implementation, choose_implementation
from tql_lightning.nn.attention_components import ClippedSoftmax, HeadGate, SoftCap
from tql_lightning.nn.initialisation import LayerNorm

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
OTHERS = ["triton"] if INTERPRETED else ["chunked", *(["triton"] if DEVICE == "cuda" else [])]
HIDDEN, HEADS, TOKENS = 12, 3, 7
on_cpu_only = pytest.mark.skipif(INTERPRETED, reason="the interpreter changes nothing here")


@pytest.fixture(params=OTHERS)
def pair(request: pytest.FixtureRequest) -> tuple[EntropyAttention, EntropyAttention]:
    """Plain and another implementation with the same parameters."""
    return make("plain"), make(request.param)


def make(implementation: Implementation, **parts: Any) -> EntropyAttention:
    torch.manual_seed(0)
    return EntropyAttention(HIDDEN, HEADS, implementation=implementation, **parts).to(DEVICE)


def tokens(count: int = TOKENS) -> Tensor:
    return torch.randn(4, count, HIDDEN, generator=torch.Generator().manual_seed(1)).to(DEVICE)


@pytest.mark.parametrize("value_only", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_the_module_gives_the_same_by_every_implementation(
    pair: tuple[EntropyAttention, EntropyAttention], value_only: bool, with_entropy: bool
) -> None:
    results = []
    for attention in pair:
        output, entropy = attention(tokens(), value_only=value_only, with_entropy=with_entropy)
        assert (entropy is None) is not with_entropy
        loss = output.square().sum() + (0.0 if entropy is None else entropy.square().sum())
        gradients = torch.autograd.grad(loss, list(attention.parameters()))
        results.append([output, *gradients, *([] if entropy is None else [entropy])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_under_autocast_types_and_numbers_are_the_plain_ones(pair: tuple[EntropyAttention, EntropyAttention]) -> None:
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        (expected, expected_entropy), (output, entropy) = (attention(tokens(), with_entropy=True) for attention in pair)
    (output.sum() + entropy.sum()).backward()
    assert output.dtype == expected.dtype == torch.bfloat16
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(entropy, expected_entropy, rtol=0.02, atol=0.02)


def test_under_inference_mode_and_functional_call(pair: tuple[EntropyAttention, EntropyAttention]) -> None:
    plain, other = pair
    with torch.inference_mode():
        expected, output = plain(tokens(), with_entropy=True)[0], other(tokens(), with_entropy=True)[0]
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    frozen = {name: 2.0 * parameter.detach() for name, parameter in other.named_parameters()}
    x = tokens().requires_grad_()
    results = [torch.func.functional_call(attention, frozen, (x,), {"with_entropy": True}) for attention in pair]
    gradients = [torch.autograd.grad(output.sum() + entropy.sum(), x)[0] for output, entropy in results]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", OTHERS if INTERPRETED else ["plain", *OTHERS])
def test_the_module_compiles_to_one_graph(implementation: Implementation) -> None:
    attention = make(implementation)
    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    results = [module(tokens(), value_only=True, with_entropy=True) for module in (attention, compiled)]
    gradients = [torch.autograd.grad(o.sum() + h.square().sum(), list(attention.parameters())) for o, h in results]
    for ours, theirs in zip((*results[1], *gradients[1]), (*results[0], *gradients[0]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("batch", "heads", "queries"), [(2, 3, 7), (1, 3, 7), (2, 1, 5)])
def test_an_operator_is_what_it_promises_to_the_compiler(name: str, batch: int, heads: int, queries: int) -> None:
    """Shapes, types and strides: compiled code relies on them, also for one row or one head, which lie otherwise."""
    q, k, v = (x.to(DEVICE) for x in inputs(batch, heads, 7, 8))
    leaves = [x.detach().requires_grad_() for x in (q[:, :, :queries], k, v)]
    forward = import_module(f"tql_lightning.nn.{name}_attention")._operator
    backward = getattr(torch.ops.tql_lightning, f"{name}_attention_backward")
    promises = ("test_schema", "test_faketensor")
    for num_attended in (0, 1, queries):
        outputs = forward(*leaves, num_attended)
        torch.library.opcheck(forward, (*leaves, num_attended), test_utils=(*promises, "test_autograd_registration"))
        given = (*(x.detach() for x in leaves), *(torch.ones_like(x) for x in outputs))
        torch.library.opcheck(backward, given, test_utils=promises)


@on_cpu_only
def test_double_precision_stays_double() -> None:
    for implementation in ("plain", "chunked"):
        output, entropy = make(implementation).double()(tokens().double(), with_entropy=True)
        assert output.dtype == entropy.dtype == torch.float64


def test_the_implementation_is_no_part_of_the_state() -> None:
    make("chunked").load_state_dict(make("plain").state_dict())
    assert set(make("chunked").state_dict()) == {"qkv.weight", "qkv.bias", "out.weight", "out.bias"}


@on_cpu_only
def test_size_decides_on_any_device_and_transforms_are_plain() -> None:
    """The kernels are taken where they are asked for by name only."""
    with FakeTensorMode():
        for device in ("cpu", "cuda"):
            short, long = (torch.empty(1, 1, tokens, 4, device=device) for tokens in (128, 129))
            assert choose_implementation(short, transformed=False) == "plain"
            assert choose_implementation(long, transformed=False) == "chunked"
            assert choose_implementation(long, transformed=True) == "plain"


@on_cpu_only
@pytest.mark.parametrize("parts", [{"score_transform": SoftCap(0.3)}, {"weight_transform": ClippedSoftmax()}])
def test_transforms_are_applied_at_any_length_and_other_implementations_refuse_them(parts: dict[str, Any]) -> None:
    long = tokens(150)
    with torch.no_grad():
        auto, plain = (make(name, **parts)(long)[0] for name in ("auto", "plain"))
        without = make("auto")(long)[0]
    assert torch.equal(auto, plain)
    assert not torch.allclose(auto, without)
    with pytest.raises(ValueError, match=r"attention.implementation: expected auto or plain with a score_transform"):
        make("chunked", **parts)


@on_cpu_only
def test_gates_and_norms_go_with_every_implementation() -> None:
    parts = {"gate": HeadGate, "query_key_norm": LayerNorm}  # queries and keys become float32
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        (expected, _), (output, _) = (make(name, **parts)(tokens()) for name in ("plain", "chunked"))
    torch.testing.assert_close(output, expected, rtol=0.02, atol=0.02)


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attention.implementation: expected auto or plain or .*, found fast"):
        EntropyAttention(HIDDEN, HEADS, implementation="fast")  # type: ignore[arg-type]


@on_cpu_only
def test_the_command_line_sets_the_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.command_line import make_model, parse_fit  # the interpreter's process needs no Lightning

    block, names = "--model.critic.init_args.block", "tql_lightning.nn"
    configuration = parse_fit(
        monkeypatch,
        "--data.dataset=tests.toy.toy_dataset",
        f"--model.critic={names}.critic.TransformerCritic",
        f"{block}={names}.transformer.TransformerBlock",
        f"{block}.init_args.attention={names}.attention.EntropyAttention",
        f"{block}.init_args.attention.init_args.implementation=chunked",
    )
    model = make_model(configuration, 3, 1)
    attentions = [module for module in model.critic.modules() if isinstance(module, EntropyAttention)]
    assert [attention.implementation for attention in attentions] == ["chunked", "chunked"]


def test_a_backward_pass_under_autocast_computes_in_the_forward_passes_types(
    pair: tuple[EntropyAttention, EntropyAttention],
) -> None:
    _, attention = pair
    gradients = []
    for inside in (False, True):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            q, k, v = (tokens().view(4, HEADS, TOKENS, -1).bfloat16().requires_grad_() for _ in range(3))
            output, entropy = attention._attend(q, k, v, TOKENS, True)
            loss = output.float().sum() + entropy.square().sum()
            if inside:
                gradients.append(torch.autograd.grad(loss, (q, k, v)))
        if not inside:
            gradients.append(torch.autograd.grad(loss, (q, k, v)))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
