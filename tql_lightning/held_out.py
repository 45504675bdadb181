"""Means of the losses over held-out transitions."""

from __future__ import annotations

import torch
from torch import Tensor

from tql_lightning.nn.temperature import TOKEN_GROUPS


class HeldOutMeans:
    """Adds up what the batches of a pass over held-out transitions give; batches may differ in size."""

    def __init__(self) -> None:
        self._transitions = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, transitions: int, metrics: dict[str, Tensor], entropy: Tensor | None) -> None:
        """Adds a batch.

        Args:
            transitions: in the batch.
            metrics: means over it.
            entropy: mean attention entropies (L, 2), or None.
        """
        values = dict(metrics)
        for layer, row in enumerate(() if entropy is None else entropy):
            for group, value in zip(TOKEN_GROUPS, row, strict=True):
                values[f"attention_entropy/layer_{layer}/{group}"] = value
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + transitions * value.float()
        self._transitions += transitions

    def take(self) -> tuple[list[str], Tensor] | None:
        """Names and means of the pass, which is over; None where nothing was held out."""
        sums, transitions = self._sums, self._transitions
        self._sums, self._transitions = {}, 0
        return (list(sums), torch.stack([*sums.values()]) / transitions) if sums else None
