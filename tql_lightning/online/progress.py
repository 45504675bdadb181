"""How far an online phase has come: what a checkpoint holds of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
FIGURES = 5


@dataclass
class Progress:
    """Counts, and what the environments are in the middle of; n environments.

    Attributes:
        first: Round at which each environment's episode begins, (n,); ``rounds`` where it is yet to begin.
        numbers: Number of each environment's episode, (n,).
        chunks: Actions that each executes open loop, (n, h, n_a).
        episodes: Finished episodes in order, (m, 3): environment, first and last round.
        rounds: Steps that every environment has made.
        broken: Failures so far.
        ended: Episodes since the last metrics: number, sums of return, length and success, number with a success.
    """

    first: Ints
    numbers: Ints
    chunks: NDArray[np.float32]
    episodes: Ints = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))
    rounds: int = 0
    broken: int = 0
    ended: NDArray[np.float64] = field(default_factory=lambda: np.zeros(FIGURES))

    @classmethod
    def start(cls, lanes: int, action_chunk: int, action_dim: int) -> Progress:
        """Before the first round of ``lanes`` environments."""
        chunks = np.zeros((lanes, action_chunk, action_dim), dtype=np.float32)
        return cls(np.zeros(lanes, dtype=np.int64), np.arange(lanes), chunks)

    def state(self) -> dict[str, Any]:
        """Values that load without pickle."""
        return {
            name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    def restored(self, state: dict[str, Any]) -> Progress | None:
        """The progress that a state of the same environments describes; None if it is none."""
        found = {name: state.get(name) if isinstance(state, dict) else None for name in vars(self)}
        values: dict[str, Any] = {
            name: each.numpy().copy() if isinstance(each, Tensor) else each for name, each in found.items()
        }
        for name, own in vars(self).items():
            value = values[name]
            if type(value) is not type(own) or (isinstance(own, np.ndarray) and value.dtype != own.dtype):
                return None
            shape = (*value.shape[:1], 3) if name == "episodes" else getattr(own, "shape", None)
            if isinstance(own, np.ndarray) and value.shape != shape:
                return None
        progress = Progress(**values)
        lane, first, last = progress.episodes.T
        bounds = (
            *((progress.first, progress.rounds + 1), (lane, len(self.first)), (first, progress.rounds)),
            *((last, progress.rounds), (progress.numbers, np.iinfo(np.int64).max)),
        )
        sound = all(bool(((numbers >= 0) & (numbers < bound)).all()) for numbers, bound in bounds)
        return progress if sound and bool((first <= last).all()) else None
