"""Random numbers as a pure function of (seed, update, row): no generator, no state, any device.

The integer hash is the output function of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators") over a counter. The numbers of update k depend on its counter alone, so they stay the
same if a run is resumed, changes its number of processes, or computes K updates at once.
"""

from __future__ import annotations

import math
from functools import cache
from operator import index

import torch
from torch import Tensor

_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = 1 << 64


def _signed(value: int) -> int:
    """A 64-bit pattern as the signed integer that torch stores."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own shift is arithmetic."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64: a bijection of int64 in which every input bit moves every output bit."""
    value = _shift_right(value, 30).bitwise_xor_(value).mul_(_signed(_MULTIPLIERS[0]))
    value = _shift_right(value, 27).bitwise_xor_(value).mul_(_signed(_MULTIPLIERS[1]))
    return _shift_right(value, 31).bitwise_xor_(value)


def mix_integer(value: int) -> int:
    """`mix` of one number, as a 64-bit pattern."""
    value %= _WORD
    value = (value ^ value >> 30) * _MULTIPLIERS[0] % _WORD
    value = (value ^ value >> 27) * _MULTIPLIERS[1] % _WORD
    return value ^ value >> 31


def uniform(seed: int, updates: Tensor, rows: Tensor, columns: int) -> Tensor:
    """Uniform numbers in [0, 1) with 53 bits, one row of them for each (update, row).

    Args:
        seed: Any integer.
        updates: Numbers of the updates, (K,) int64, on the device of the result.
        rows: Row numbers, (R,) int64, same device.
        columns: Numbers per row.

    Returns:
        (K, R, columns) float64.
    """
    step = _signed(_INCREMENT)
    stream = mix((updates * step).add_(_signed(mix_integer(index(seed) + _INCREMENT))))  # NumPy's would overflow
    row_key = mix(stream[:, None] + (rows + 1).mul_(step))
    counter = torch.arange(1, columns + 1, device=updates.device).mul_(step)
    return _shift_right(mix(row_key[..., None] + counter), 11).to(torch.float64).mul_(2.0**-53)


def seed_generators(device: torch.device, seed: int, update: int, rank: int) -> None:
    """Seeds torch's generators for one update, for layers such as dropout that draw from them.

    The numbers are then a function of (seed, update, rank), so that a resumed run draws the same.

    Args:
        device: Device whose generator is seeded, beside the CPU's.
        seed: Any integer.
        update: Number of the update.
        rank: Rank of this process.
    """
    number = (_generator_key(index(seed), rank) + update) % _WORD
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        number_of_device = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[number_of_device].manual_seed(number)


@cache
def _generator_key(seed: int, rank: int) -> int:
    return mix_integer(mix_integer(seed + _INCREMENT) - rank * _INCREMENT)


def normal(uniforms: Tensor) -> Tensor:
    """Standard normal numbers by Box and Muller from an even number of uniform columns: (..., 2c) -> (..., 2c)."""
    first, second = uniforms.chunk(2, dim=-1)
    radius = torch.log1p(-first).mul_(-2.0).sqrt_()
    angle = 2.0 * math.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)
