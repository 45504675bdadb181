"""What every implementation of attention with entropy is held to: float64, and the limits of its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Attention = Callable[..., tuple[Tensor, Tensor | None]]
Both = tuple[Tensor, Tensor]


def inputs(
    batch: int, heads: int, tokens: int, size: int, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as the fused projection gives them: views into one tensor, not contiguous."""
    generator = torch.Generator().manual_seed(tokens)
    fused = torch.randn(batch, tokens, 3, heads, size, generator=generator, dtype=torch.float64)
    fused[:, :, 0] *= scale
    q, k, v = fused.to(dtype).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def run(attention: Attention, qkv: tuple[Tensor, ...], num_attended: int | None = None) -> tuple[Both, list[Tensor]]:
    """Both outputs, and the gradients of queries, keys, values through each: first attended, then entropy."""
    qkv = tuple(x.detach().requires_grad_() for x in qkv)
    num_attended = qkv[0].shape[2] if num_attended is None else num_attended
    attended, entropy = attention(*qkv, num_attended=num_attended, with_entropy=True)
    assert entropy is not None
    gradients: list[Tensor] = []
    for output in (attended, entropy):
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        weighted = (output * direction.to(output)).sum()
        gradients += torch.autograd.grad(weighted, qkv, retain_graph=True, materialize_grads=True)
    return (attended, entropy), gradients


def reference(q: Tensor, k: Tensor, v: Tensor, *, num_attended: int, with_entropy: bool = True) -> Both:  # noqa: ARG001
    """The definition, in float64; 0 log 0 = 0."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("bhie,bhje->bhij", q, k) / math.sqrt(q.shape[-1])
    weights = torch.softmax(scores, dim=-1)
    entropy = torch.special.entr(weights.clamp_min(1e-300)).sum(-1)
    return torch.einsum("bhij,bhje->bhie", weights[:, :, :num_attended], v), entropy


def assert_equals_reference(
    attention: Attention, qkv: tuple[Tensor, ...], num_attended: int | None = None, *, tolerance: float
) -> None:
    """Values and gradients of both outputs; tolerances are relative to the largest number of each tensor."""
    outputs, gradients = run(attention, qkv, num_attended)
    expected_outputs, expected_gradients = run(reference, tuple(x.double() for x in qkv), num_attended)
    names = ["attended", "entropy", *(f"d {out} / d {x}" for out in ("attended", "entropy") for x in "qkv")]
    pairs = zip((*outputs, *gradients), (*expected_outputs, *expected_gradients), strict=True)
    for name, (ours, theirs) in zip(names, pairs, strict=True):
        if theirs.numel() == 0:
            assert ours.shape == theirs.shape
            continue
        bound = tolerance * max(1.0, theirs.abs().max().item())
        error = (ours.double() - theirs).abs().max().item()
        assert error <= bound, f"{name}: off by {error:.1e}, allowed {bound:.1e}"


def assert_sound(attention: Attention, qkv: tuple[Tensor, ...]) -> None:
    """No NaN or infinity anywhere; entropies between 0 and ln n but for rounding."""
    (attended, entropy), gradients = run(attention, qkv)
    for tensor in (attended, entropy, *gradients):
        assert torch.isfinite(tensor).all()
    assert entropy.min().item() >= 0.0
    assert entropy.max().item() <= math.log(qkv[1].shape[2]) * (1 + 1e-6)
