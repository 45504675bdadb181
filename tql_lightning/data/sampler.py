"""The counter-based stream of minibatches: update k's indices and noise are f(seed, k, row)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tql_lightning.batch import UpdateSpec
from tql_lightning.data.counter_random import normal, uniform
from tql_lightning.data.storage import StorageChoice, store
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.data.windows import Span, windows_of


def rows_per_process(batch_size: int, processes: int) -> int:
    """Transitions of the global batch that each of several processes takes.

    Args:
        batch_size: B of the global batch.
        processes: Number of processes that share it.

    Raises:
        ValueError: they cannot have equal parts of it.
    """
    if batch_size < 1 or batch_size % processes:
        below, above = batch_size // processes * processes, (batch_size // processes + 1) * processes
        near = f"{below} or {above}" if below > 0 else f"{above}"
        raise ValueError(
            f"data.batch_size: the global batch is divided over {processes} processes; expected a positive "
            f"multiple of {processes}, found {batch_size}; set it to {near}, or change trainer.devices or "
            "trainer.num_nodes"
        )
    return batch_size // processes


class TransitionSampler:
    """Draws uniform minibatches with replacement, a chunk of them by one gather a field.

    Row i of the global batch of update k is a function of (seed, k, i) alone. Rank r of W computes rows
    [r B / W, (r + 1) B / W), so W processes draw the very batch that one process would.

    Args:
        dataset: Transitions to draw from.
        batch_size: B of the global batch over all ranks.
        seed: seed of the stream.
        device: the device that trains; batches and noise lie there.
        rank: this process among ``world_size``.
        world_size: number of processes that share the global batch.
        span: steps that one row spans: n-step returns and action chunks.
        storage: Place of the transitions; see `storage.store`.
        spec: What an update reads.

    Raises:
        ValueError: ``batch_size`` is no multiple of ``world_size``.
        DatasetError: no episode is as long as an action chunk.
    """

    def __init__(
        self,
        dataset: TransitionDataset,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        span: Span = Span(),  # noqa: B008  (frozen)
        storage: StorageChoice = "auto",
        spec: UpdateSpec = UpdateSpec(),  # noqa: B008  (frozen)
    ) -> None:
        per_rank = rows_per_process(batch_size, world_size)
        self.windows = windows_of(store(dataset, device, storage), dataset, span)
        self.windows.tabulate()
        self.seed, self.spec = seed, spec
        self.rows = torch.arange(rank * per_rank, (rank + 1) * per_rank, device=device)
        self._stored_rows = torch.arange(rank * per_rank, (rank + 1) * per_rank, device=self.windows.storage.device)

    def chunk(self, first_update: int, num_updates: int) -> tuple[Any, Any]:
        """Batches and noise of updates first_update ... first_update + K - 1, leading dimensions (K, B)."""
        updates = range(first_update, first_update + num_updates)
        numbers = self._uniform(updates, self.rows, 1 + _columns(self.spec))
        first = numbers[..., 0]
        if self._stored_rows.device != self.rows.device:  # the same, drawn there: to fetch them would wait for the GPU
            first = self._uniform(updates, self._stored_rows, 1)[..., 0]
        batch = self._draw(first)
        return batch, _noise(self.spec, numbers[..., 1:], batch[0].dtype)

    def _draw(self, numbers: Tensor) -> Any:
        """Rows for uniform numbers (K, B) of this process's rows, on the storage's device."""
        return self.windows.batch(positions(numbers, len(self.windows)), self.spec.batch)

    def _uniform(self, updates: range, rows: Tensor, columns: int) -> Tensor:
        return uniform(self.seed, torch.arange(updates.start, updates.stop, device=rows.device), rows, columns)


def positions(numbers: Tensor, size: int) -> Tensor:
    """Uniform numbers in [0, 1) -> positions in 0 ... size - 1."""
    return (numbers * size).long().clamp_(max=size - 1)


class Request(NamedTuple):
    """A chunk that is drawn when its trainer step begins, since the data then may still grow.

    Attributes:
        first_update: Number of its first update.
        num_updates: K.
    """

    first_update: int
    num_updates: int


class TrainingStream:
    """Iterable of chunks for a trainer: starts at its current update, ends chunks on multiples of K.

    Args:
        chunk: Draws a chunk from the number of its first update and K, or makes a `Request` of them.
        first_update: tells the update at which an iteration starts.
        updates_per_step: K.
        last_update: the stream never yields an update from here on; None for no end.
    """

    def __init__(
        self,
        chunk: Callable[[int, int], Any],
        first_update: Callable[[], int],
        updates_per_step: int,
        last_update: int | None,
    ) -> None:
        self.chunk = chunk
        self.first_update = first_update
        self.updates_per_step = updates_per_step
        self.last_update = last_update

    def __iter__(self) -> Iterator[Any]:
        """Yields (batch, noise) with leading dimensions (K, B); the first and last chunk may be shorter."""
        update = self.first_update()
        while self.last_update is None or update < self.last_update:
            end = (update // self.updates_per_step + 1) * self.updates_per_step
            if self.last_update is not None:
                end = min(end, self.last_update)
            yield self.chunk(update, end - update)
            update = end


class ValidationPass:
    """One ordered pass over held-out transitions (or windows of them), with noise that is the same at every pass.

    Rank r of W takes batches r, r + W, ... of the pass; where there are fewer than W, every rank takes all of them, so
    that none is without one. Means over transitions are the same either way.

    Args:
        dataset: held-out transitions.
        batch_size: B; the last batch may be smaller.
        seed: seed of the noise.
        device: the device that computes; batches and noise lie there.
        rank: this process among ``world_size``.
        world_size: number of processes that share the pass.
        span: steps that one row spans.
        storage: Place of the transitions; see `storage.store`.
        spec: What an update reads.
    """

    def __init__(
        self,
        dataset: TransitionDataset,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        span: Span = Span(),  # noqa: B008  (frozen)
        storage: StorageChoice = "auto",
        spec: UpdateSpec = UpdateSpec(),  # noqa: B008  (frozen)
    ) -> None:
        self.windows = windows_of(store(dataset, device, storage), dataset, span)
        starts = range(0, len(self.windows), batch_size)
        self.starts = starts[rank::world_size] if len(starts) >= world_size else starts
        self.batch_size = batch_size
        self.seed, self.spec = seed, spec
        self.device = torch.device(device)

    def __len__(self) -> int:
        """Batches that this process takes."""
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yields (batch, noise) with leading dimension (B,)."""
        update = torch.zeros(1, dtype=torch.long, device=self.device)
        columns = _columns(self.spec)
        for start in self.starts:
            rows = torch.arange(start, min(start + self.batch_size, len(self.windows)), device=self.device)
            numbers = uniform(self.seed, update, rows, columns)
            batch = self.windows.batch(rows.to(self.windows.storage.device), self.spec.batch)
            yield batch, _noise(self.spec, numbers[0], batch[0].dtype)


def _columns(spec: UpdateSpec) -> int:
    """Uniform numbers that the noise of one row is made of; normal ones are made in pairs."""
    uniform_count, normal_count = (_count(spec, kind) for kind in ("uniform", "normal"))
    return uniform_count + normal_count + normal_count % 2


def _count(spec: UpdateSpec, distribution: str) -> int:
    return sum(math.prod(draw.shape) for draw in spec.draws.values() if draw.distribution == distribution)


def _noise(spec: UpdateSpec, numbers: Tensor, dtype: torch.dtype) -> Any:
    """Uniform columns (..., C) -> the noise of an update; uniform fields take the first columns, in their order."""
    split = _count(spec, "uniform")
    # Rounding to float32 could make a time of exactly 1, which lies outside [0, 1).
    uniforms = numbers[..., :split].to(dtype).clamp(max=1.0 - torch.finfo(dtype).eps)
    columns = {"uniform": uniforms, "normal": normal(numbers[..., split:]).to(dtype)}
    position = {"uniform": 0, "normal": 0}
    fields: list[Tensor] = []
    for draw in spec.draws.values():
        start, size = position[draw.distribution], math.prod(draw.shape)
        position[draw.distribution] = start + size
        drawn = columns[draw.distribution][..., start : start + size]
        # Contiguous: a recorded update copies all of its inputs in one launch.
        fields.append(drawn.reshape(*numbers.shape[:-1], *draw.shape).contiguous())
    return spec.noise(*fields)
