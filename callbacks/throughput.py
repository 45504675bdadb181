"""Logs the speed of training and its use of the device."""

from __future__ import annotations

import re
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from tql_lightning.batch import at_update
from tql_lightning.callbacks.observing import evaluation_mode, require_algorithm
from tql_lightning.run.provenance import peak_memory_bytes
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.sharding import is_sharded
from tql_lightning.training.stock_callbacks import log_metrics

ROWS = 2  # batch size for counting operations, whose number is proportional to it

# Dense peak of matrix products in FLOP/s by NVIDIA's data sheets, which give twice as much "with sparsity":
# pattern of the device's whole name -> (16 bit, float32 on tensor cores, float32). MIG partitions match none.
PEAKS = {
    r"NVIDIA H200": (989e12, 494e12, 67e12),
    r"NVIDIA H100 80GB HBM3": (989e12, 494e12, 67e12),
    r"NVIDIA H100 PCIe": (756e12, 378e12, 51e12),
    r"(NVIDIA )?A100-(SXM4|PCIE)-[48]0GB|NVIDIA A100 80GB PCIe": (312e12, 156e12, 19.5e12),
    r"NVIDIA L40S": (362e12, 183e12, 91.6e12),
    r"NVIDIA L40": (181e12, 90.5e12, 90.5e12),
    r"NVIDIA L4": (121e12, 60e12, 30.3e12),
    r"NVIDIA A10": (125e12, 62.5e12, 31.2e12),
}


class Throughput(Callback):
    """Logs updates and samples per second, peak memory, and model FLOPs utilization.

    Only time in updates counts, not that of evaluations, pictures and checkpoints. Keys: ``train/updates_per_second``,
    ``train/samples_per_second`` (over all processes), ``train/memory_gb`` (peak so far of the device, or of the process
    on a CPU) and, for devices in `PEAKS`, ``train/model_flops_utilization`` (FLOP/s of the model's matrix products,
    forward and backward, over the device's peak at the run's precision).

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Throughput()], logger=False, enable_checkpointing=False)
        >>> type(trainer.callbacks[0]).__name__
        'Throughput'
    """

    logs = (
        *("train/updates_per_second", "train/samples_per_second", "train/memory_gb"),
        "train/model_flops_utilization",
    )

    def __init__(self) -> None:
        self._seconds = self._started = 0.0
        self._first_update = 0
        self._flops_per_row: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts counting."""
        self._seconds, self._first_update = 0.0, trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops the clock; logs at the updates whose metrics are logged, which have waited for the device."""
        self._seconds += time.perf_counter() - self._started
        if not outputs["log_now"]:
            return
        updates, seconds = trainer.global_step - self._first_update, self._seconds
        self._seconds, self._first_update = 0.0, trainer.global_step
        model = require_algorithm(self, pl_module)
        rows = batch[0][0].shape[1]  # batch size of this process
        per_second = updates / seconds
        scalars = {
            "train/updates_per_second": per_second,
            "train/samples_per_second": per_second * rows * trainer.world_size,
            "train/memory_gb": memory_gb(model.device),
        }
        # Counting the operations of a sharded model would need every process.
        peak = (
            None
            if any(map(is_sharded, model.trained_networks()))
            else device_peak(model.device, str(trainer.precision))
        )
        if peak is not None:
            if self._flops_per_row is None:
                self._flops_per_row = flops_of_update(model, *batch) / ROWS
            scalars["train/model_flops_utilization"] = per_second * rows * self._flops_per_row / peak
        log_metrics(trainer, trainer.strategy.broadcast(scalars), trainer.global_step)


def memory_gb(device: torch.device) -> float:
    """Returns peak memory so far in GB, of tensors on a CUDA device or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_memory_bytes() / 1e9


def device_peak(device: torch.device, precision: str) -> float | None:
    """Returns the peak FLOP/s of a device's matrix products at a Lightning precision; None if unknown."""
    if device.type != "cuda" or precision.startswith("64"):
        return None
    name = torch.cuda.get_device_name(device)
    peaks = next((peaks for pattern, peaks in PEAKS.items() if re.fullmatch(pattern, name)), None)
    if peaks is None:
        return None
    if "16" in precision:
        return peaks[0]
    return peaks[2] if torch.get_float32_matmul_precision() == "highest" else peaks[1]


def flops_of_update(model: Algorithm, batches: Any, noises: Any) -> int:
    """Counts FLOPs of an update's matrix products on `ROWS` transitions, forward and backward.

    The model stays unchanged, and no gradient is stored. Custom kernels are not counted.

    Args:
        model: Algorithm that is trained.
        batches: Batches with leading dimensions (K, B).
        noises: Noise with leading dimensions (K, B).
    """
    batch, noise = (type(each)(*(field[:ROWS] for field in at_update(each, 0))) for each in (batches, noises))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluation_mode(model), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        total = model.losses(batch, noise, model.current_inputs(), with_metrics=False).total
        torch.autograd.grad(total, parameters, allow_unused=True)
    return int(counter.get_total_flops())
