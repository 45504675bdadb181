"""A golden case of any method: its model, run on the recorded batches and noise, and what the run recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from tests.golden_methods.arrays import Arrays, Named, load_arrays, release_arrays
from tests.golden_methods.bases import Method


def read(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@dataclass
class Record:
    """What each update did."""

    totals: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    gradients: list[Arrays] = field(default_factory=list)
    parameters: list[Arrays] = field(default_factory=list)


class RecordedUpdates:
    """The recorded batches and noise as a trainer's data: one update a step."""

    def __init__(self, case: MethodCase, num_updates: int) -> None:
        self.case, self.num_updates = case, num_updates

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for update in range(self.num_updates):
            yield tuple(type(fields)(*(field[None] for field in fields)) for fields in self.case.recorded(update))


class Recorder(Callback):
    """Notes what a run of the recorded updates does; observes only."""

    def __init__(self, case: MethodCase, named: Sequence[Named]) -> None:
        self.record, self.named = case.record, named

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        self.record.learning_rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.record.gradients.append(release_arrays(self.named, lambda parameter: parameter.grad))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.record.totals.append(float(outputs["loss"]))
        logged = outputs["metrics"] | {"total_loss": outputs["loss"]}
        self.record.metrics.append({name: float(value) for name, value in logged.items()})
        self.record.parameters.append(release_arrays(self.named, lambda parameter: parameter))


@dataclass
class MethodCase:
    """A golden case, the model that ran from it, and what running it recorded."""

    folder: Path
    method: Method
    core: Arrays
    model: Any
    record: Record
    reached: dict[str, float]

    @property
    def updates(self) -> range:
        return range(len(self.record.totals))

    def after(self, updates: int) -> Any:
        """A model with the release's parameters after so many updates."""
        model = self.method.build()
        load_arrays(self.method.named(model), self.used(read(self.folder / f"params_{updates}.npz")))
        return model

    def used(self, arrays: Arrays) -> Arrays:
        """Without arrays that nothing in the release uses and that the model has not."""
        own = {entry.name for entry in self.method.named(self.model)}
        return {name: a for name, a in arrays.items() if name in own or not name.startswith(self.method.unused)}

    def of_update(self, update: int, prefix: str = "") -> dict[str, Tensor]:
        """Arrays of an update under a prefix, by the rest of their names."""
        prefix = f"u{update}/{prefix}"
        return {
            k.removeprefix(prefix): torch.from_numpy(np.asarray(a))
            for k, a in self.core.items()
            if k.startswith(prefix)
        }

    def recorded(self, update: int) -> tuple[Any, Any]:
        """Batch and noise of an update."""
        batch = self.method.batch(self.model, self.of_update(update, "batch/"))
        return batch, self.method.draws(self.model, self.of_update(update, "draw/"), batch)

    def compare(
        self, kind: str, name: str, ours: Any, release: Any, tolerance: float, scale: float = 0.0, floor: float = 1e-7
    ) -> None:
        """Asserts that two arrays are equal to a tolerance, and notes what was reached.

        Args:
            kind: Under which the largest difference over the scale is noted.
            name: Of the array, for the message.
            ours: Any shape.
            release: The same shape.
            tolerance: Of the difference over the scale.
            scale: Largest number that the array's entries are sums of, if larger than the largest entry.
            floor: Absolute difference that is always allowed.
        """
        ours, release = np.asarray(ours, dtype=np.float64), np.asarray(release, dtype=np.float64)
        assert ours.shape == release.shape, f"{name}: shape {ours.shape}, release {release.shape}"
        difference = float(np.abs(ours - release).max(initial=0.0))
        scale = max(scale, float(np.abs(release).max(initial=0.0)))
        if scale > 0.0:
            self.reached[kind] = max(self.reached.get(kind, 0.0), difference / scale)
        allowed = max(floor, tolerance * scale)
        assert difference <= allowed, f"{name}: differs by {difference:.3g}, allowed {allowed:.3g}"


def run_method_case(folder: Path, method: Method, scratch: Path, reached: dict[str, float]) -> MethodCase:
    """Runs a case's updates and records them.

    Args:
        folder: Of the case.
        method: Of the case.
        scratch: Where a Trainer may write.
        reached: Takes the largest difference of each kind of number.
    """
    torch.set_num_threads(1)
    case = MethodCase(folder, method, read(folder / "core.npz"), method.build(), Record(), reached)
    named = method.named(case.model)
    load_arrays(named, case.used(read(folder / "params_0.npz")))
    num_updates = json.loads((folder / "config.json").read_text())["K"]
    trainer = Trainer(
        max_steps=num_updates,
        log_every_n_steps=1,
        limit_val_batches=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[Recorder(case, named)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=scratch,
    )
    trainer.fit(case.model, train_dataloaders=RecordedUpdates(case, num_updates))
    return case
