"""Logs the attention entropy of every layer, token group and head, and warns when attention collapses."""

from __future__ import annotations

import math
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tql_lightning.callbacks.observing import (
    data_of,
    evaluation_mode,
    fixed_transitions,
    require_algorithm,
    require_critic,
)
from tql_lightning.nn.attention_weights import attention_log_weights, head_entropies
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.temperature import TOKEN_GROUPS
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.distributed import mean_over_processes
from tql_lightning.training.sharding import gathered
from tql_lightning.training.stock_callbacks import log_metrics

PATIENCE = 3  # logged updates in a row


class AttentionEntropyMonitor(Callback):
    """Logs attention entropy, target and temperature per layer and token group, and the entropy of every head.

    Token groups are "value" (the [VALUE] query) and "others". Keys of the last minibatch:
    ``train/attention_entropy/layer_0/value``, ``train/attention_entropy_share/...`` (entropy over its maximum ln n),
    ``train/target_entropy/...``, ``train/attention_entropy_distance/...`` (entropy minus target) and
    ``train/temperature/...``. ``train/head_entropy/layer_0/value/head_3`` is of a fixed batch from the dataset. Without
    entropy control there are no targets and temperatures. A critic without attention logs nothing.

    Args:
        floor: Share of ln n. Below it for three logged updates in a row, a layer causes one warning; 0 for no warning.
        transitions: Size of the fixed batch for head entropies; 0 to leave them out.

    Raises:
        ValueError: ``floor`` is not between 0 and 1, or ``transitions`` is negative.

    Examples:
        >>> AttentionEntropyMonitor(floor=0.2).floor  # warn below 20 % of ln n
        0.2
    """

    logs = (
        *("train/attention_entropy/*", "train/attention_entropy_share/*", "train/attention_entropy_distance/*"),
        *("train/target_entropy/*", "train/temperature/*", "train/head_entropy/*"),
    )

    def __init__(self, floor: float = 0.1, transitions: int = 64) -> None:
        if not 0.0 <= floor < 1.0:
            raise ValueError(f"AttentionEntropyMonitor.floor: expected between 0 and 1, found {floor}")
        if transitions < 0:
            raise ValueError(f"AttentionEntropyMonitor.transitions: expected at least 0, found {transitions}")
        self.floor = floor
        self.transitions = transitions
        self._times_under: dict[int, int] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs at the updates at which the algorithm logs its metrics."""
        diagnostics = outputs["diagnostics"]
        if not outputs["log_now"] or "attention_entropy" not in diagnostics:
            return
        tables: dict[str, list[list[float]]] = {}
        for name in ("attention_entropy", "target_entropy", "temperature"):
            if name in diagnostics:
                tables[name] = mean_over_processes(at_least_float32(diagnostics[name])).tolist()
        entropies, targets = tables["attention_entropy"], tables.get("target_entropy")
        num_tokens = require_critic(self, pl_module).num_tokens
        tables["attention_entropy_share"] = [[value / math.log(num_tokens) for value in row] for row in entropies]
        if targets is not None:
            tables["attention_entropy_distance"] = [
                [value - target for value, target in zip(row, target_row, strict=True)]
                for row, target_row in zip(entropies, targets, strict=True)
            ]
        head_entropies = self._head_entropies(trainer, require_algorithm(self, pl_module))
        if trainer.is_global_zero:
            self._warn_of_collapse(trainer.global_step, num_tokens, entropies, targets)
        scalars = {
            f"train/{name}/layer_{layer}/{group}": value
            for name, table in tables.items()
            for layer, row in enumerate(table)
            for group, value in zip(TOKEN_GROUPS, row, strict=True)
        }
        log_metrics(trainer, trainer.strategy.broadcast(scalars | head_entropies), trainer.global_step)

    def _head_entropies(self, trainer: Trainer, model: Algorithm) -> dict[str, float]:
        """Head entropies by key on the first process; called on every process, as sharded weights are gathered."""
        if self.transitions == 0 or not trainer.loggers:
            return {}
        critic = require_critic(self, model)
        with gathered(critic), evaluation_mode(critic):
            if not trainer.is_global_zero:
                return {}
            pairs = fixed_transitions(data_of(self, trainer), self.transitions, model)
            tables = [head_entropies(layer).tolist() for layer in attention_log_weights(critic, *pairs)]
        return {
            f"train/head_entropy/layer_{layer}/{group}/head_{head}": value
            for layer, table in enumerate(tables)
            for group, row in zip(TOKEN_GROUPS, table, strict=True)
            for head, value in enumerate(row)
        }

    def _warn_of_collapse(
        self, update: int, num_tokens: int, entropies: list[list[float]], targets: list[list[float]] | None
    ) -> None:
        largest = math.log(num_tokens)
        for layer, row in enumerate(entropies):
            group = row.index(min(row))
            under = row[group] < self.floor * largest
            self._times_under[layer] = self._times_under.get(layer, 0) + 1 if under else 0
            if self._times_under[layer] != PATIENCE:
                continue
            self._times_under[layer] = PATIENCE + 1  # no second warning until entropy has recovered
            target = "without a target" if targets is None else f"of target {targets[layer][group]:.2f}"
            remedy = (
                "set model.entropy_control to AttentionTemperature"
                if targets is None
                else "raise the temperature's learning rate or lower the critic's, or start with a narrower critic"
            )
            warnings.warn(
                f"attention is collapsing in layer {layer}: entropy {row[group]:.2f} {target} "
                f"({TOKEN_GROUPS[group]} queries; {row[group] / largest:.0%} of ln {num_tokens} = {largest:.2f}) "
                f"at update {update}. Q may become jagged and the policy worse: {remedy}; see docs/collapse.md",
                stacklevel=2,
            )
