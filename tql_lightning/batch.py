"""What one update is computed from, and the shape legend used in every file.

Shape legend
    B    batch: transitions in one update
    K    updates in one chunk (a leading dimension of everything the sampler yields)
    n_s  observation size, n_a action size
    n    tokens of the critic: 1 + n_s + n_a, token 0 is [VALUE]
    H    hidden size, h heads, e = H / h head size, L transformer layers
    E    heads (members) of the critic ensemble
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Transitions (s, a, r, s', mask) drawn uniformly from an offline dataset.

    Attributes:
        observations: s, (..., B, n_s).
        actions: a in [-1, 1], (..., B, n_a).
        rewards: r, (..., B).
        next_observations: s', (..., B, n_s).
        masks: (..., B), 0 where the MDP truly terminated and 1 elsewhere; a time limit never masks.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    masks: Tensor

    def update(self, k: int) -> Batch:
        """The batch of the k-th update of a chunk."""
        return Batch(*(field[k] for field in self))


class Noise(NamedTuple):
    """Every random number that one update uses, so that the losses are pure functions.

    Attributes:
        next_action: z' ~ N(0, I) of the one-step policy at s', (..., B, n_a).
        flow_x0: x_0 ~ N(0, I), start of the behaviour flow, (..., B, n_a).
        flow_t: t ~ U[0, 1), time of the behaviour flow, (..., B, 1).
        distillation: z ~ N(0, I), shared by student, teacher and the Q term, (..., B, n_a).
        metric: z ~ N(0, I) of the logged action error, no influence on training, (..., B, n_a).
    """

    next_action: Tensor
    flow_x0: Tensor
    flow_t: Tensor
    distillation: Tensor
    metric: Tensor

    def update(self, k: int) -> Noise:
        """The noise of the k-th update of a chunk."""
        return Noise(*(field[k] for field in self))
