"""Peak memory of an update for each size of critic: ours, and the plain implementation's.

    python -m benchmarks.memory --device cpu --json

On CUDA the allocator tells the most that was allocated; on the CPU torch's profiler lists every allocation, and the
peak is that of their running sum. It is counted beyond what is there before the update; parameters, gradients and the
optimizer's state are told apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.harness import machine, peak_bytes, prepare, show
from benchmarks.update import Problem, update_parser

SIZES = (128, 256, 512, 1024)
MEBIBYTE = 2.0**20


def held_bytes(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Parameters, buffers, gradients and optimizer state, which outlive an update."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    tensors += [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Peak of an update in MiB, ours and plain, and their ratio."""
    problem = Problem(options)
    device = problem.device
    problem.ours()
    ours = peak_bytes(problem.ours, device)
    problem.optimizer.zero_grad()
    problem.plain_update()
    plain = peak_bytes(problem.plain_update, device)
    held = held_bytes(problem.model, [problem.optimizer])
    return {
        "held_mib": held / MEBIBYTE,
        "ours_mib": ours / MEBIBYTE,
        "plain_mib": plain / MEBIBYTE,
        "ratio": ours / plain,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures every size; returns the fields that are printed."""
    prepare(options)
    fields: dict[str, Any] = {}
    for size in options.sizes:
        options.hidden_dim = size
        fields |= {f"{name}_{size}": value for name, value in measure(options).items()}
    described = {name: getattr(options, name) for name in ("device", "precision", "compile", "batch")}
    return {**fields, **described, "machine": machine(options.device)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark with options of the command line."""
    options = update_parser(__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="hidden sizes of the critic")
    parsed = options.parse_args(arguments)
    show(run(parsed), parsed.json)


if __name__ == "__main__":
    main()
