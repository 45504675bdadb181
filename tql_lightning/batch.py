"""Inputs of one update, and the shape legend used in every file.

Shape legend
    B    batch: transitions in one update
    K    updates in one trainer step (a leading dimension of everything the sampler yields)
    n_s  observation size, n_a action size
    n    tokens of the critic: 1 + n_s + n_a, token 0 is [VALUE]
    H    hidden size, h heads, e = H / h head size, L transformer layers
    E    heads (members) of the critic ensemble
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from torch import Tensor

Fields = TypeVar("Fields", bound=tuple[Any, ...])  # a NamedTuple of tensors


class Batch(NamedTuple):
    """Transitions (s, a, r, s', mask) drawn uniformly from an offline dataset.

    Attributes:
        observations: s, (..., B, n_s).
        actions: a in [-1, 1], (..., B, n_a).
        rewards: r, (..., B).
        next_observations: s', (..., B, n_s).
        masks: (..., B), 0 where the MDP truly terminated and 1 elsewhere; a time limit never masks.

    Examples:
        >>> batch = Batch(torch.zeros(4, 3), torch.zeros(4, 1), torch.ones(4), torch.zeros(4, 3), torch.ones(4))
        >>> batch.rewards.sum()
        tensor(4.)
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    masks: Tensor


class NoNoise(NamedTuple):
    """Noise of an algorithm whose update uses no random numbers."""


@dataclass(frozen=True)
class Draw:
    """Random numbers that an update uses for each row of its batch.

    Args:
        distribution: "normal" for N(0, 1), "uniform" for [0, 1).
        shape: Shape for one row, so that the tensor is (B, *shape).

    Examples:
        >>> Draw("normal", shape=(16, 2)).shape  # 16 actions of size 2 for each transition
        (16, 2)
    """

    distribution: Literal["normal", "uniform"]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class UpdateSpec:
    """Batch fields and random numbers that one update uses; nothing else is gathered or drawn.

    Args:
        batch: NamedTuple class whose fields are gathered from the dataset by name.
        noise: NamedTuple class whose fields are drawn.
        draws: One `Draw` for each field of ``noise``.

    Raises:
        ValueError: The fields of ``noise`` and ``draws`` differ.
    """

    batch: type[Any] = Batch
    noise: type[Any] = NoNoise
    draws: Mapping[str, Draw] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if list(self.noise._fields) != list(self.draws):
            raise ValueError(
                f"{self.noise.__name__}: expected one draw for each of its fields {', '.join(self.noise._fields)}, "
                f"in this order, found {', '.join(self.draws) or 'none'}"
            )


def at_update(fields: Fields, k: int) -> Fields:
    """Returns the k-th update of a NamedTuple of tensors: (K, B, ...) -> (B, ...)."""
    return type(fields)(*(each[k] for each in fields))
