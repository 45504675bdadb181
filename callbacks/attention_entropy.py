"""Logs the attention entropy of every layer and token group beside its target and temperature."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tql_lightning.nn.temperature import TOKEN_GROUPS


class AttentionEntropyMonitor(Callback):
    """Writes entropy, target and temperature per layer and token group to the loggers.

    Keys: ``train/attention_entropy/layer_0/value``, ``train/target_entropy/...`` and
    ``train/temperature/...``, for the groups "value" ([VALUE] query) and "others". Without entropy control
    only the entropies exist; with a critic that has no attention nothing is written.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes at the updates at which the module writes its own metrics."""
        if not outputs["log_now"]:
            return
        scalars: dict[str, float] = {}
        for name in ("attention_entropy", "temperature", "target_entropy"):
            table = outputs[name]
            if table is None:
                continue
            averaged = trainer.strategy.reduce(table.float(), reduce_op="mean").tolist()
            for layer, row in enumerate(averaged):
                for group, value in zip(TOKEN_GROUPS, row, strict=True):
                    scalars[f"train/{name}/layer_{layer}/{group}"] = value
        for logger in trainer.loggers if scalars else ():
            logger.log_metrics(scalars, step=trainer.global_step)
