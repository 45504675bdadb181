"""Detects diverged training before a checkpoint holds it, names what is not finite, and keeps the minibatches.

A NaN in a parameter stays there, so one check of all parameters per logging interval misses none. It is one reduction
on the device, read together with the metrics. Every checkpoint is checked before it is written. Between two checks only
references to the losses are kept, which show at which update the divergence began.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from tql_lightning.batch import UpdateSpec
from tql_lightning.data.sampler import Request, TrainingStream
from tql_lightning.data.sources.npz import open_npz
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import read_checkpoint
from tql_lightning.run.folder import CONFIG_FILE, divergence_file, writes_nothing
from tql_lightning.system.files import write_text_whole, write_whole
from tql_lightning.system.private_api import norms
from tql_lightning.training.distributed import sum_over_processes

MOST_SHOWN = 3
MOST_UPDATES = 256  # limit of the minibatches that are written
MOST_LOSSES = 4096  # references kept between two checks, one per update
GRADIENT_NORM = "gradient_norm/"
NOISE = "noise_"  # prefix of noise in a file of minibatches
NO_STEP_SCALE = 2.0**-40  # finite float16 gradients do not overflow at a loss scale this small

Named = Iterator[tuple[str, Tensor]]


class TrainingDivergedError(ValueError):
    """Losses, parameters, gradients, the optimizer's state or data hold NaN or infinity; the message names them."""


class DivergenceWatch:
    """Records which updates were found finite, to tell where a divergence began."""

    def __init__(self) -> None:
        self._sound: int | None = None  # updates done at the last check that found everything finite
        self._losses: deque[tuple[int, Tensor]] = deque(maxlen=MOST_LOSSES)

    @property
    def begun(self) -> bool:
        """Whether an update has been made."""
        return self._sound is not None

    def keep(self, update: int, loss: Tensor) -> None:
        """Keeps a reference to an update's loss, without waiting for the device.

        Args:
            update: Number of the update, counted from 0.
            loss: Detached scalar in memory that later updates do not overwrite.
        """
        self._sound = update if self._sound is None else self._sound
        self._losses.append((update, loss))

    def passed(self, update: int) -> None:
        """Records that everything was finite after ``update`` updates."""
        self._sound = update
        self._losses.clear()

    def first_broken(self, passes: bool = False) -> tuple[int | None, int | None]:
        """Returns the first update whose loss is not finite, and the last one before it whose loss is finite.

        Updates count from 0; None stands for no such update. Call it on every process, as losses are summed over them.

        Args:
            passes: Whether training can recover from such a loss, as with float16, which skips the step. The first
                update is then the one after which no loss is finite.
        """
        if not self._losses:
            return None, None
        finite = sum_over_processes(torch.stack([loss.float() for _, loss in self._losses])).isfinite().tolist()
        updates = [update for update, _ in self._losses]
        first = next(
            (k for k, sound in enumerate(finite) if not sound and not (passes and any(finite[k:]))), len(finite)
        )
        return (updates[first] if first < len(finite) else None), (updates[first - 1] if first else None)

    def suspects(self, update: int, broken: int | None, finite: int | None, by_losses: bool = True) -> range:
        """Returns the updates, counted from 0, among which the divergence began.

        Args:
            update: Number of updates done.
            broken: First result of `first_broken`.
            finite: Second result of `first_broken`.
            by_losses: Whether the divergence shows in losses. A finite loss at update k then proves that updates before
                k left finite weights. Infinite squared gradients in the optimizer's state show in no loss.
        """
        begin = self._sound if self._sound is not None else max(update - 1, 0)
        if by_losses and finite is not None:
            begin = max(begin, finite)
        end = update if broken is None else broken + 1
        return range(min(begin, end - 1), end) if end > 0 else range(0)


def count_broken(model: LightningModule, trainer: Trainer) -> Tensor:
    """Counts parameters, buffers and optimizer tensors that hold NaN or infinity: a float32 scalar on the device.

    It does not wait for the device. Each process counts the tensors, or shards of tensors, that it holds.
    """
    by_type: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for _, tensor in (*_weights(model), *_optimizer_state(model, trainer)):
        by_type.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    count = torch.zeros((), device=model.device)
    for tensors in by_type.values():
        largest = torch.stack(norms(tensors, math.inf))  # the norm of a tensor with NaN is NaN
        count += (~largest.isfinite()).sum().to(count.device)
    return count


def broken_metrics(scalars: dict[str, float], trainer: Trainer) -> list[str]:
    """Returns names of metrics that are not finite; with float16 without gradient norms, which may overflow."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    expected = [name for name in scalars if scaler is None or GRADIENT_NORM not in name]
    found = [name for name in expected if not math.isfinite(scalars[name])]
    if scaler is not None and scaler.is_enabled() and scaler.get_scale() < NO_STEP_SCALE:
        found.append("gradients at every scale of float16 (use precision bf16-mixed)")
    return found


def require_sound(model: LightningModule, trainer: Trainer, watch: DivergenceWatch) -> None:
    """Checks weights and optimizer before a save or the end of training; call it on every process.

    Raises:
        TrainingDivergedError: A parameter, buffer or optimizer tensor holds NaN or infinity.
    """
    broken = trainer.strategy.reduce(count_broken(model, trainer), reduce_op="sum")
    if float(broken) > 0:
        raise diverged(model, trainer, watch, [])
    watch.passed(trainer.global_step)


def diverged(
    model: LightningModule, trainer: Trainer, watch: DivergenceWatch, metrics: Sequence[str]
) -> TrainingDivergedError:
    """Makes the error of a divergence and writes the suspected minibatches into the run's folder.

    Call it on every process.

    Args:
        model: Algorithm that diverged.
        trainer: Its trainer.
        watch: Record of the updates that were finite.
        metrics: Names of metrics that are not finite.
    """
    update, folder = trainer.global_step, Path(trainer.default_root_dir)
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    parameters, optimizer = _broken(_weights(model)), _broken(_optimizer_state(model, trainer))
    first, finite = watch.first_broken(passes=scaled)
    suspects = watch.suspects(update, first, finite, by_losses=bool(parameters or metrics))
    minibatches = _draw(trainer, suspects)
    kinds = {
        "minibatches": [] if minibatches is None else _broken(_named_fields(*minibatches)),
        "parameters": parameters,
        "gradients": [] if scaled else _broken(_gradients(model)),
        "optimizer": optimizer,
    }
    named = {kind: names for kind, names in kinds.items() if names}
    began = f"update {suspects[0]}" if len(suspects) == 1 else f"one of updates {suspects.start} to {suspects.stop - 1}"
    if first is not None:
        began += f", the loss of update {first} is the first that is not finite"
    kept = _write_minibatches(trainer, folder, suspects, minibatches)
    head = f"training diverged: after update {update} not finite: "
    tail = [f"it began in {began} (counted from 0); {kept}"]
    good, remedy = last_good(trainer), "lower the learning rates or set model.optimisation.gradient_clip_norm"
    if good is None:
        tail.append(f"no checkpoint had been written yet; {remedy}, and start again")
    else:
        if len(suspects) > 1 and (folder / CONFIG_FILE).is_file():
            tail.append(
                f"to find the update: tql fit --config {folder / CONFIG_FILE} --config replay --ckpt_path={good[0]} "
                f"--trainer.default_root_dir={folder / 'replay'}"
            )
        tail.append(f"last good checkpoint: {good[0]}, after update {good[1]}; {remedy}, and continue from it")
    what = metrics or ["what training has made"]
    whole = [head + ", ".join(what), *(f"{kind}: {', '.join(names)}" for kind, names in named.items()), *tail]
    _write_text(trainer, folder, suspects, "\n".join(whole) + "\n")
    short = [head + _first(what), *(f"{kind}: {_first(names)}" for kind, names in named.items()), *tail]
    return TrainingDivergedError("\n".join(short))


def last_good(trainer: Trainer) -> tuple[Path, int] | None:
    """Returns the run's newest undamaged checkpoint, or the one it continued from, and its number of updates."""
    named = [trainer.ckpt_path, *(getattr(each, "last_model_path", None) for each in trainer.checkpoint_callbacks)]
    found = []
    for path in {Path(each) for each in named if each}:
        try:
            found.append((_from_here(path), int(read_checkpoint(path, mmap=True)["global_step"])))
        except CheckpointError:
            continue
    return max(found, key=lambda each: each[1], default=None)


def _from_here(path: Path) -> Path:
    """Shortens a path to one relative to the working folder, where that is above it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def read_minibatches(path: Path | str, spec: UpdateSpec) -> tuple[int, Any, Any]:
    """Reads the minibatches that a diverged run kept, without pickle.

    Args:
        path: Path of ``divergence/update_<N>.npz`` in the run's folder.
        spec: The algorithm's ``update_spec``.

    Returns:
        The first update, counted from 0, and the batches and noise of K updates from there, (K, B, ...).
    """
    with open_npz(Path(path)) as arrays:
        batch = spec.batch(*(torch.from_numpy(arrays[name]) for name in spec.batch._fields))
        noise = spec.noise(*(torch.from_numpy(arrays[NOISE + name]) for name in spec.noise._fields))
        return int(arrays["update"]), batch, noise


def _draw(trainer: Trainer, updates: range) -> tuple[Any, Any] | None:
    """Draws minibatches again; None if they are too many, or data have grown, or another data module drew them."""
    stream = trainer.train_dataloader
    if writes_nothing(trainer):
        return None
    if not isinstance(stream, TrainingStream) or not 0 < len(updates) <= MOST_UPDATES:
        return None
    drawn = stream.chunk(updates.start, len(updates))
    return None if isinstance(drawn, Request) else drawn


def _write_minibatches(trainer: Trainer, folder: Path, updates: range, minibatches: tuple[Any, Any] | None) -> str:
    """Writes this process's rows of the minibatches; returns where, for the message."""
    if minibatches is None:
        return (
            f"minibatches are kept of at most {MOST_UPDATES} updates, drawn by OfflineDataModule without online phase"
        )
    path = divergence_file(folder, updates.start, trainer.global_rank)
    arrays = {name: tensor.float().cpu().numpy() for name, tensor in _named_fields(*minibatches)}
    try:
        with write_whole(path) as file:
            np.savez(file, allow_pickle=False, update=np.int64(updates.start), **arrays)
    except OSError as error:
        return f"its minibatches could not be written to {path} ({error})"
    return f"minibatches and noise: {path}; this in full: .txt beside it"


def _write_text(trainer: Trainer, folder: Path, updates: range, text: str) -> None:
    """Writes the message with every name beside the minibatches; ignores a failed write, so that the error shows."""
    if updates and not writes_nothing(trainer):
        with suppress(OSError):
            write_text_whole(divergence_file(folder, updates.start, trainer.global_rank).with_suffix(".txt"), text)


def _named_fields(batch: Any, noise: Any) -> Named:
    yield from zip(batch._fields, batch, strict=True)
    yield from zip((f"{NOISE}{name}" for name in noise._fields), noise, strict=True)


def _weights(model: LightningModule) -> Named:
    yield from _floating(model.named_parameters())
    yield from _floating(model.named_buffers())


def _gradients(model: LightningModule) -> Named:
    gradients = ((name, each.grad) for name, each in model.named_parameters() if each.grad is not None)
    yield from _floating(gradients)


def _optimizer_state(model: LightningModule, trainer: Trainer) -> Named:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            tensors = ((key, value) for key, value in state.items() if isinstance(value, Tensor))
            yield from ((f"{key} of {names.get(id(parameter), '?')}", value) for key, value in _floating(tensors))


def _floating(named: Iterable[tuple[str, Tensor]]) -> Named:
    """Yields floating-point tensors; of a sharded one this process's shard."""
    for name, tensor in named:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.is_floating_point() and local.numel():
            yield name, local.detach()


def _broken(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names tensors that hold NaN or infinity, with the number of such elements."""
    found = []
    for name, tensor in tensors:
        count = int((~tensor.isfinite()).sum())
        if count:
            found.append(f"{name} ({count} of {tensor.numel()})")
    return found


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more
