"""Attention with entropy, forward and backward: time of each implementation over the plain one, memory against tokens.

    python -m benchmarks.attention --json

Queries, keys and values get gradients through both outputs. What is timed has a batch that shrinks as tokens grow, so
that times stay short; on the CPU it is the time of this process alone. What is weighed is one batch element: on the CPU
what torch's allocator holds at its highest (`torch.profiler`), on CUDA `torch.cuda.max_memory_allocated`, both without
the inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import (
    CALLS,
    PRECISIONS,
    Peak,
    alternate,
    count_flops,
    machine,
    parser,
    peak_bytes,
    prepare,
    show,
)
from tql_lightning.nn.attention import HAS_TRITON, MAX_PLAIN_TOKENS, plain_attention
from tql_lightning.nn.chunked_attention import chunked_attention

Pass = Callable[[], object]


def implementations(device: str) -> dict[str, Callable[..., tuple[Tensor, Tensor | None]]]:
    """By name, those that run on a device."""
    found = {"plain": plain_attention, "chunked": chunked_attention}
    if torch.device(device).type == "cuda" and HAS_TRITON:
        from tql_lightning.nn.triton_attention import triton_attention

        found["triton"] = triton_attention
    return found


def passes(tokens: int, batch: int, options: Any) -> dict[str, Pass]:
    """What is measured: by implementation, a call that goes forward and backward."""
    dtype = PRECISIONS[options.precision]
    shape = (3, batch, options.heads, tokens, options.head_dim)
    qkv = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(options.device, dtype).unbind(0)
    leaves = tuple(x.requires_grad_() for x in qkv)
    direction = torch.randn_like(leaves[0])

    def forward_backward(attention: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        attended, entropy = attention(*leaves, num_attended=tokens, with_entropy=True)
        return torch.autograd.grad((attended, entropy), leaves, (direction, torch.ones_like(entropy)))

    return {
        name: partial(forward_backward, attention)
        for name, attention in implementations(options.device).items()
        if name != "triton" or tokens <= MAX_PLAIN_TOKENS
    }


def measure(options: Any, peak_size: int | None = None) -> dict[str, Any]:
    """The fields of the report; those of a length end in "/TOKENS"."""
    peak = Peak(options.device, options.precision, peak_size)
    fields: dict[str, Any] = {"machine": machine(options.device), "device": options.device}
    fields |= {"precision": options.precision, "heads": options.heads, "head_dim": options.head_dim}
    for tokens in options.time_tokens:
        batch = max(1, options.elements // tokens**2)
        calls = passes(tokens, batch, options)
        clock = time.perf_counter if torch.device(options.device).type == "cuda" else time.process_time
        variants = {**calls, **peak.variants}
        together = dict.fromkeys(calls, CALLS[torch.device(options.device).type])
        comparison = alternate(variants, options.device, options.rounds, options.warmup, together, clock)
        flops = count_flops(calls["plain"])  # of every implementation: what it computes twice is not counted
        found: dict[str, float] = {}
        for name in calls:
            found |= comparison.fields(name) | peak.fields(comparison, name, flops)
            if name != "plain":
                found[f"{name}_ratio"] = comparison.ratio(name, "plain")
                found[f"{name}_ratio_spread"] = comparison.ratio_spread(name, "plain")
        fields |= {f"{name}/{tokens}": value for name, value in found.items()}
    for tokens in options.memory_tokens:
        for name, call in passes(tokens, 1, options).items():
            call()  # a first call may keep something
            fields[f"{name}_mib/{tokens}"] = peak_bytes(call, options.device) / 2**20
    return fields


def main(arguments: list[str] | None = None, peak_size: int | None = None) -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--precision", choices=PRECISIONS, default="float32", help="of queries, keys and values")
    options.add_argument("--heads", type=int, default=4, help="of attention")
    options.add_argument("--head-dim", type=int, default=32, help="size of a head")
    options.add_argument("--time-tokens", type=int, nargs="+", default=[43, 128, 512, 2048], help="lengths to time")
    lengths = [2**power for power in range(5, 13)]
    options.add_argument("--memory-tokens", type=int, nargs="+", default=lengths, help="lengths to weigh")
    options.add_argument("--elements", type=int, default=2**19, help="tokens^2 * batch of what is timed")
    chosen = options.parse_args(arguments)
    prepare(chosen)
    torch.set_float32_matmul_precision("high" if chosen.precision == "tf32" else "highest")
    show(measure(chosen, peak_size), chosen.json)


if __name__ == "__main__":
    main()
