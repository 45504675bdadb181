"""Peak memory of an update for each size of critic: ours, and the plain implementation's.

    python -m benchmarks.memory --device cpu --json

On CUDA the allocator tells the most that was allocated; on the CPU torch's profiler lists every allocation, and the
peak is that of their running sum. It is counted beyond what is held between updates, parameters and the optimizer's
state, which is told apart; gradients are part of an update. There are no FLOPs here, and hardly any spread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.harness import interquartile_range, machine, peak_bytes, prepare, show
from benchmarks.update import Problem, update_parser

SIZES = (128, 256, 512, 1024)
MEBIBYTE = 2.0**20


def held_bytes(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Parameters, buffers and optimizer state, which outlive an update."""
    tensors = [*model.parameters(), *model.buffers()]
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    tensors += [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Peak of an update in MiB beyond what is held, ours and plain in turn, and their ratio."""
    problem = Problem(options)
    device, model = problem.device, problem.model
    problem.ours()
    held = held_bytes(model, [problem.optimizer])
    problem.plain_update()
    ours, plain = [], []
    for _ in range(options.rounds):
        problem.optimizer.zero_grad()
        problem.plain.zero_grad()
        ours.append(peak_bytes(problem.ours, device) / MEBIBYTE)
        plain.append(peak_bytes(problem.plain_update, device) / MEBIBYTE)
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "target_parameters": sum(p.numel() for p in model.target_critic.parameters()),
        "held_mib": held / MEBIBYTE,
        "ours_mib": median(ours),
        "ours_spread_mib": interquartile_range(ours),
        "plain_mib": median(plain),
        "plain_spread_mib": interquartile_range(plain),
        "ratio": median(a / b for a, b in zip(ours, plain, strict=True)),
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
    options = update_parser(__doc__, rounds=2)
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="hidden sizes of the critic")
    parsed = options.parse_args(arguments)
    show(run(parsed), parsed.json)


if __name__ == "__main__":
    main()
