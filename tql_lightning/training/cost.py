"""An estimate of what an update costs, for critics whose attention grows with the square of the numbers observed."""

from __future__ import annotations

import time

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

MANY_TOKENS = 300  # above which training says what an update costs
PASSES = 7  # forward passes that an update's work is worth: three each for critic and actor, one for the target
PROBE_SIZE = 512  # of the matrices whose product tells how fast the device is
BYTES = 4


def warn_of_many_tokens(model: nn.Module, rows: int, device: torch.device) -> None:
    """Warns of the time and memory of an update where the critic attends to several hundred tokens.

    Args:
        model: Algorithm to train; nothing is said where it has no critic that attends.
        rows: Transitions that this process takes at once.
        device: Device that computes.
    """
    critic = getattr(model, "critic", None)
    tokens, layers = int(getattr(critic, "num_tokens", 0)), int(getattr(critic, "num_layers", 0))
    if critic is None or layers == 0 or tokens <= MANY_TOKENS:
        return
    operations = PASSES * forward_operations(critic, rows)
    seconds = operations / operations_per_second(device)
    heads = max(1, int(critic.hidden_dim) // 32)
    weights = 2 * BYTES * layers * rows * heads * tokens**2  # with gradients
    rank_zero_warn(
        f"model.critic: {tokens:,} tokens, one for each number observed or acted with: an update takes about "
        f"{operations / 1e9:,.0f} GFLOP, {seconds:.2g} s on this {device.type}, growing with the square of the tokens; "
        f"plain attention would hold {weights / 1e9:.2g} GB of weights. To lower it: observe fewer numbers, lower "
        f"data.batch_size (now {rows}), attention with implementation chunked for memory (docs/attention.md), or "
        "--model.critic=tql_lightning.nn.critic.MLPCritic"
    )


def forward_operations(critic: nn.Module, rows: int) -> float:
    """Floating-point operations of a forward pass: two for each parameter and token, and attention's products."""
    tokens, layers, width = (int(getattr(critic, name)) for name in ("num_tokens", "num_layers", "hidden_dim"))
    parameters = sum(parameter.numel() for parameter in critic.parameters())
    return float(rows * tokens * (2 * parameters + 4 * layers * width * tokens))


def operations_per_second(device: torch.device) -> float:
    """What the device makes of a product of two matrices, at its best of three."""
    factor = torch.ones(PROBE_SIZE, PROBE_SIZE, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        (factor @ factor)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2.0 * PROBE_SIZE**3 / best
