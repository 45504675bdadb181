"""Random numbers as a pure function of (seed, update, row): no generator, no state, any device.

The integer hash is the output function of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators") over a counter. What update k draws depends on nothing but its counter,
so a run may stop anywhere, change its number of processes, or compute K updates at once, and draw the same.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = 1 << 64


def _signed(value: int) -> int:
    """A 64-bit pattern as the signed integer torch holds it in."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own keeps the sign."""
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
        seed: any integer.
        updates: (K,) int64, on the device that the numbers are wanted on.
        rows: (R,) int64, same device.
        columns: numbers per row.

    Returns:
        (K, R, columns) float64.
    """
    step = _signed(_INCREMENT)
    stream = mix((updates * step).add_(_signed(mix_integer(seed + _INCREMENT))))
    row_key = mix(stream[:, None] + (rows + 1).mul_(step))
    counter = torch.arange(1, columns + 1, device=updates.device).mul_(step)
    return _shift_right(mix(row_key[..., None] + counter), 11).to(torch.float64).mul_(2.0**-53)


def seed_generators(device: torch.device, seed: int, update: int, rank: int) -> None:
    """Seeds torch's own generators for one update, for what draws from them within networks.

    As with `uniform`, what is drawn is then a function of (seed, update, rank): a run that stops anywhere draws the
    same when it goes on.

    Args:
        device: whose generator is seeded, beside the CPU's.
        seed: any integer.
        update: number of the update.
        rank: of this process, each of which draws its own.
    """
    number = (_generator_key(seed, rank) + update) % _WORD
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(number)


@cache
def _generator_key(seed: int, rank: int) -> int:
    return mix_integer(mix_integer(seed + _INCREMENT) - rank * _INCREMENT)


def normal(uniforms: Tensor) -> Tensor:
    """Standard normal numbers by Box and Muller from an even number of uniform columns: (..., 2c) -> (..., 2c)."""
    first, second = uniforms.chunk(2, dim=-1)
    radius = torch.log1p(-first).mul_(-2.0).sqrt_()
    angle = 2.0 * math.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)
