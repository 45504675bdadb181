"""Means of the losses over held-out transitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import MaxMetric, MeanMetric, Metric, MinMetric

from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.temperature import TOKEN_GROUPS
from tql_lightning.training.distributed import extreme_of

# NaN stays NaN; torchmetrics' "disable" would forget the weights of means.
KINDS: dict[str | None, Callable[..., Metric]] = {None: MeanMetric, "min": MinMetric, "max": MaxMetric}


class HeldOutMeans:
    """Averages metrics over a pass through held-out transitions, weighting each batch by its size."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def add(self, transitions: int, metrics: dict[str, Tensor], diagnostics: dict[str, Tensor]) -> None:
        """Adds a batch.

        Args:
            transitions: Number of transitions in the batch.
            metrics: Scalars of the batch: means, and extremes where `extreme_of` says so.
            diagnostics: Diagnostics of the losses; only attention_entropy (L, 2) is used.
        """
        values, entropy = dict(metrics), diagnostics.get("attention_entropy")
        for layer, row in enumerate(() if entropy is None else entropy):
            for group, value in zip(TOKEN_GROUPS, row, strict=True):
                values[f"attention_entropy/layer_{layer}/{group}"] = value
        for name, found in values.items():
            value = at_least_float32(found.detach())
            metric = self._metrics.get(name)
            if metric is None:
                metric = self._metrics[name] = KINDS[extreme_of(name)](nan_strategy=math.nan).to(value.device)
                metric.set_dtype(value.dtype)
            metric.update(value, *([] if extreme_of(name) else [transitions]))

    def take(self) -> dict[str, float]:
        """Ends the pass and returns its metrics over all processes; empty where nothing was held out."""
        metrics, self._metrics = self._metrics, {}
        return {name: float(metric.compute()) for name, metric in metrics.items()}

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
