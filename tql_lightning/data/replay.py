"""Transitions that a run collects itself: files that grow, and windows of the episodes in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tql_lightning.batch import Batch
from tql_lightning.data.returns import monte_carlo_returns
from tql_lightning.data.sources.npy_folder import map_numbers
from tql_lightning.data.storage import Storage, TensorStorage
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.data.windows import Span, Windows
from tql_lightning.system.full_disk import unwritten

Ints = NDArray[np.int64]


class ReplayBuffer:
    """Collected transitions of several environments, a lane of consecutive rows for each.

    Step t of environment j is in row j * steps + t, so that a lane's rows are in order of time. Rows are written once
    and never again: what a checkpoint refers to stays as it was. A step that failed leaves a row that no episode holds.

    Args:
        like: Dataset whose sizes the transitions have.
        lanes: Number of environments.
        steps: Largest number of steps of each.
        device: Device that rows are gathered on.
        target: Device that trains.
        folder: Folder for the files; None to keep the arrays in memory.

    Raises:
        DatasetError: There is no room for the files, or they are not this buffer's.
    """

    def __init__(
        self,
        like: TransitionDataset,
        lanes: int,
        steps: int,
        device: torch.device,
        target: torch.device,
        folder: Path | None = None,
    ) -> None:
        self.lanes, self.steps, self.folder = lanes, steps, folder
        shapes = {name: (lanes * steps, *getattr(like, name).shape[1:]) for name in Batch._fields}
        self.arrays: dict[str, NDArray[np.float32]] = {
            name: np.zeros(shape, np.float32) if folder is None else self._open(folder / f"{name}.npy", shape)
            for name, shape in shapes.items()
        }
        flags = np.zeros(lanes * steps, dtype=np.bool_)
        columns: dict[str, Any] = {**self.arrays, "episode_ends": flags, "validation": None}
        dataset = replace(like, name="replay buffer", **columns)
        self.storage = GrowingStorage(dataset, device, target)

    def _open(self, file: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Maps a file, which is made, or made longer, if need be."""
        try:
            before = map_numbers(file) if file.is_file() else None  # "r+" would make a file as long as it says
            if before is not None and before.dtype != np.float32:
                raise ValueError(f"numbers of {before.dtype}")
            if before is not None and before.shape == shape and file.stat().st_nlink == 1:
                return np.lib.format.open_memmap(file, mode="r+")
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f".{file.name}.part")
            array = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
            with part.open("r+b") as reserved:  # a full disk would end the process when the map is written to
                os.posix_fallocate(reserved.fileno(), 0, part.stat().st_size)
            if before is not None:
                lanes = [each.reshape(self.lanes, -1, *shape[1:]) for each in (array, before)]
                kept = min(each.shape[1] for each in lanes)
                lanes[0][:, :kept] = lanes[1][:, :kept]
            part.replace(file)
        except (ValueError, EOFError) as error:
            raise DatasetError(
                f"{file}: expected a replay buffer of {self.lanes} environments, found something else ({error}); "
                "remove it and start the run anew"
            ) from error
        except OSError as error:
            needed = 4 * np.prod(shape)
            raise DatasetError(f"{unwritten(file, error)}; the replay buffer needs {needed:,} bytes") from error
        return array

    def write(self, step: int, lanes: Ints, columns: Mapping[str, NDArray[Any]]) -> None:
        """Writes step ``step`` of some lanes; ``columns`` holds a row of every field of `Batch` for each."""
        rows = lanes * self.steps + step
        for name, values in columns.items():
            self.arrays[name][rows] = values
        self.storage.refresh(rows)

    def read(self, name: str, lane: int, first: int, last: int) -> NDArray[np.float32]:
        """Steps first ... last - 1 of a lane, of one field."""
        start = lane * self.steps
        return self.arrays[name][start + first : start + last]

    def column(self, name: str, lanes: Ints, step: int) -> NDArray[np.float32]:
        """One step of some lanes, of one field."""
        return self.arrays[name][lanes * self.steps + step]

    def copy_from(self, folder: Path, steps: int) -> None:
        """Copies the first steps of every lane from another process's files."""
        for name, array in self.arrays.items():
            there = map_numbers(folder / f"{name}.npy")
            ours, theirs = (each.reshape(self.lanes, self.steps, *array.shape[1:]) for each in (array, there))
            ours[:, :steps] = theirs[:, :steps]
        self.storage.refresh(np.arange(self.lanes * self.steps))

    def flush(self) -> None:
        """Writes the mapped files to the disk, so that a checkpoint refers to rows that are there."""
        for array in self.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()

    def spans(self, episodes: Ints, first: Ints, steps: int) -> tuple[Ints, Ints]:
        """First and last rows of the finished episodes, and then of those in flight; see `GrowingWindows.grow`."""
        flying = np.flatnonzero(first < steps)
        lane, begin, end = episodes.T
        offset = np.concatenate([lane, flying]) * self.steps
        last = np.full(len(flying), steps - 1)
        return offset + np.concatenate([begin, first[flying]]), offset + np.concatenate([end, last])


class GrowingStorage(TensorStorage):
    """Tensors of which rows are written while others are gathered; on a CPU they share the arrays' memory."""

    def __init__(self, dataset: TransitionDataset, device: torch.device, target: torch.device) -> None:
        super().__init__(dataset, device, target)
        self.dataset = dataset

    def refresh(self, rows: Ints) -> None:
        """Copies rows of the arrays to the device."""
        if self.device.type == "cpu":
            return
        at = torch.from_numpy(rows).to(self.device)
        for name, tensor in self.fields.items():
            tensor[at] = torch.from_numpy(getattr(self.dataset, name)[rows]).to(self.device)

    def take_runs(self, field: str, rows: Tensor, length: int) -> Tensor:
        """Takes the rows one by one: a copy in which runs are rows would not grow."""
        return Storage.take_runs(self, field, rows, length)


class GrowingWindows(Windows):
    """Windows of a replay buffer; the last step so far ends its episode like a time limit.

    Args:
        buffer: Collected transitions.
        span: Span of a window.
    """

    def __init__(self, buffer: ReplayBuffer, span: Span) -> None:
        self.buffer = buffer
        self._returns: dict[str, NDArray[np.float32]] = {}
        self._summed = 0  # finished episodes whose returns are known
        super().__init__(buffer.storage, buffer.storage.dataset, span)

    def _count(self, dataset: TransitionDataset) -> None:  # noqa: ARG002  (it grows)
        self._looks_up = False
        self._size = 0
        self._some_missing = self.span.action_chunk > 1
        self._powers = self.span.discount ** torch.arange(
            self.span.steps, dtype=torch.float64, device=self.storage.device
        )

    def tabulate(self) -> None:
        """Does nothing: a table would not grow."""

    def grow(self, episodes: Ints, first: Ints, steps: int) -> None:
        """Takes in the buffer's episodes.

        Args:
            episodes: Finished episodes in order, (m, 3): lane, first and last step.
            first: First step of each lane's episode in flight, (lanes,); ``steps`` if none is.
            steps: Steps so far.
        """
        self._spans, self._finished = self.buffer.spans(episodes, first, steps), len(episodes)
        starts, ends = self._spans
        order = np.argsort(ends)
        starts, ends = starts[order], ends[order]
        lengths = ends - starts + 1
        terminated = self.buffer.arrays["masks"][ends] == 0
        counts = np.where(terminated, lengths, np.maximum(lengths - self.span.action_chunk + 1, 0))
        cumulative = counts.cumsum()
        self._size = int(cumulative[-1]) if len(cumulative) else 0
        tensors = (torch.from_numpy(each).to(self.storage.device) for each in (starts, ends, cumulative))
        self._starts, self._ends, self._cumulative = tensors

    @property
    def _monte_carlo(self) -> dict[str, Tensor]:
        """Returns of all transitions by name; those of episodes in flight are summed again at every call."""
        rewards, masks = self.buffer.arrays["rewards"], self.buffer.arrays["masks"]
        if not self._returns:
            self._returns = {name: np.zeros_like(rewards) for name in ("returns", "remainders")}
        starts, ends = self._spans
        for start, end in zip(starts[self._summed :], ends[self._summed :] + 1, strict=True):
            last = np.arange(start, end) == end - 1
            found = monte_carlo_returns(rewards[start:end], masks[start:end], last, self.span.discount)
            for name, column in self._returns.items():
                column[start:end] = getattr(found, name)
        self._summed = self._finished
        return {name: torch.from_numpy(column).to(self.storage.device) for name, column in self._returns.items()}
