"""Means of the losses over held-out transitions."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.temperature import TOKEN_GROUPS
from tql_lightning.training.distributed import EXTREMES, over_processes, sum_over_processes


class HeldOutMeans:
    """Averages metrics over a pass through held-out transitions, weighting each batch by its size."""

    def __init__(self) -> None:
        self._transitions = 0
        self._sums: dict[str, Tensor] = {}
        self._extremes: dict[str, Tensor] = {}

    def add(self, transitions: int, metrics: dict[str, Tensor], diagnostics: dict[str, Tensor]) -> None:
        """Adds a batch.

        Args:
            transitions: Number of transitions in the batch.
            metrics: Scalars of the batch: means, and the extremes that `EXTREMES` names.
            diagnostics: Diagnostics of the losses; only attention_entropy (L, 2) is used.
        """
        values, entropy = dict(metrics), diagnostics.get("attention_entropy")
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
        """Ends the pass and returns its metrics over all processes; empty where nothing was held out."""
        sums, extremes, transitions = self._sums, self._extremes, self._transitions
        self._sums, self._extremes, self._transitions = {}, {}, 0
        if not sums:
            return {}
        some = next(iter(sums.values()))
        totals = sum_over_processes(torch.stack([*sums.values(), torch.as_tensor(transitions).to(some)]))
        means = (totals[:-1] / totals[-1]).tolist()
        return dict(zip(sums, means, strict=True)) | over_processes(extremes)

    def log(self, module: Any, stage: str) -> None:
        """Ends the pass and logs its metrics as ``STAGE/NAME``, at the model's current update.

        Args:
            module: Algorithm that was validated, attached to a trainer.
            stage: "val" or "test".
        """
        taken = self.take()
        if not taken:
            return
        trainer = module.trainer
        scalars: dict[str, Any] = {f"{stage}/{name}": value for name, value in taken.items()}
        fits = trainer.state.fn == TrainerFn.FITTING
        if not fits:  # Lightning writes and prints them, at this step
            scalars["step"] = torch.tensor(module.current_update, dtype=torch.float64)
        module.log_dict(scalars, logger=False if fits else None, sync_dist=True)
        for logger in module.loggers if fits and not trainer.sanity_checking else ():  # Lightning's step counts chunks
            logger.log_metrics({name: float(value) for name, value in scalars.items()}, step=module.global_step)
