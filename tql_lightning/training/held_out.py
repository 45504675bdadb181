"""Means of the losses over held-out transitions."""

from __future__ import annotations

import torch
from torch import Tensor

from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.temperature import TOKEN_GROUPS
from tql_lightning.training.distributed import EXTREMES, over_processes, sum_over_processes


class HeldOutMeans:
    """Adds up what the batches of a pass over held-out transitions give; batches may differ in size and number."""

    def __init__(self) -> None:
        self._transitions = 0
        self._sums: dict[str, Tensor] = {}
        self._extremes: dict[str, Tensor] = {}

    def add(self, transitions: int, metrics: dict[str, Tensor], entropy: Tensor | None) -> None:
        """Adds a batch.

        Args:
            transitions: in the batch.
            metrics: means over it, smallest and largest values.
            entropy: mean attention entropies (L, 2), or None.
        """
        values = dict(metrics)
        for layer, row in enumerate(() if entropy is None else entropy):
            for group, value in zip(TOKEN_GROUPS, row, strict=True):
                values[f"attention_entropy/layer_{layer}/{group}"] = value
        for name, value in values.items():
            if name in EXTREMES:
                so_far = self._extremes.get(name, value)
                self._extremes[name] = EXTREMES[name](torch.stack([so_far, value]))
            else:
                self._sums[name] = self._sums.get(name, 0.0) + transitions * at_least_float32(value)
        self._transitions += transitions

    def take(self) -> dict[str, float]:
        """Metrics of the pass, which is over, of all processes together; none where nothing was held out."""
        sums, extremes, transitions = self._sums, self._extremes, self._transitions
        self._sums, self._extremes, self._transitions = {}, {}, 0
        if not sums:
            return {}
        some = next(iter(sums.values()))
        totals = sum_over_processes(torch.stack([*sums.values(), torch.as_tensor(transitions).to(some)]))
        means = (totals[:-1] / totals[-1]).tolist()
        return dict(zip(sums, means, strict=True)) | over_processes(extremes)
