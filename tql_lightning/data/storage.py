"""Storage of a dataset's arrays while it is sampled: the training device, main memory, or memory-mapped files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tql_lightning.batch import Batch, Fields
from tql_lightning.data.mapped import RowReader, can_be_read, mapping_of
from tql_lightning.data.transitions import TransitionDataset

StorageChoice = Literal["auto", "trainer", "cpu"]
FITTING_SHARE = 0.5  # share of a device's free memory; networks and activations need the rest
RESIDENT_BYTES = 512 * 2**20  # of memory-mapped files


class Storage(ABC):
    """Arrays of N transitions that rows are taken from.

    Attributes:
        device: Device of row numbers and of rows.
        target: Device that trains.
        fields: Arrays or tensors by name.
    """

    fields: Mapping[str, Any]

    def __init__(self, device: torch.device, target: torch.device) -> None:
        self.device = device
        self.target = target
        self.pinned = device.type == "cpu" and target.type == "cuda"

    @abstractmethod
    def take(self, field: str, rows: Tensor) -> Tensor:
        """Rows of a field of `Batch`.

        Args:
            field: name of the field.
            rows: int64 of any shape, on ``device``.

        Returns:
            float32, the shape of ``rows``, and after it the field's own columns if it has any; on ``device``.
        """

    def take_runs(self, field: str, rows: Tensor, length: int) -> Tensor:
        """Takes ``length`` consecutive rows from each row on; rows beyond the last hold any finite numbers.

        Returns:
            The shape of ``rows``, then ``length``, then the field's own columns.
        """
        steps = rows.unsqueeze(-1) + torch.arange(length, device=rows.device)
        return self.take(field, steps.clamp_(max=len(self.fields[field]) - 1))

    def deliver(self, batch: Fields) -> Fields:
        """Moves a batch to the training device; a copy to a GPU does not wait for the GPU's queue."""
        if self.device == self.target:
            return batch
        fields = (field.pin_memory() if self.pinned and not field.is_pinned() else field for field in batch)
        return type(batch)(*(field.to(self.target, non_blocking=True) for field in fields))


class TensorStorage(Storage):
    """Tensors on one device.

    Args:
        dataset: the transitions; arrays in main memory are shared, not copied, where they can be.
        device: Device to hold them on.
        target: the device that trains.
    """

    def __init__(self, dataset: TransitionDataset, device: torch.device, target: torch.device) -> None:
        super().__init__(device, target)
        self.fields: dict[str, Tensor] = {
            name: _tensor(getattr(dataset, name)).to(device, torch.float32) for name in Batch._fields
        }
        self._runs: dict[tuple[str, int], Tensor] = {}

    def take(self, field: str, rows: Tensor) -> Tensor:
        """One gather, into page-locked memory where it is to be copied to a GPU; see `Storage.take`."""
        source = self.fields[field]
        return self._gather(source, rows).view(*rows.shape, *source.shape[1:])

    def take_runs(self, field: str, rows: Tensor, length: int) -> Tensor:
        """One gather of overlapping rows ``length`` times as long; see `Storage.take_runs`."""
        columns = self.fields[field].shape[1:]
        if (field, length) not in self._runs:
            source = self.fields[field].flatten(1) if columns else self.fields[field].unsqueeze(1)
            size, width = source.shape
            longer = torch.cat([source, source.new_zeros(length - 1, width)])
            self._runs[field, length] = longer.as_strided((size, length * width), (width, 1))
        return self._gather(self._runs[field, length], rows).view(*rows.shape, length, *columns)

    def _gather(self, source: Tensor, rows: Tensor) -> Tensor:
        flat = rows.flatten()
        if not self.pinned:
            return source.index_select(0, flat)
        out = torch.empty((len(flat), *source.shape[1:]), dtype=source.dtype, pin_memory=True)
        return torch.index_select(source, 0, flat, out=out)


class MappedStorage(Storage):
    """Memory-mapped files, for datasets larger than memory.

    Small fields, up to ``RESIDENT_BYTES`` in total, are indexed in the map; rows of larger ones are read from the file.
    Both use the page cache, which processes share and the kernel shrinks under memory pressure.

    Args:
        dataset: transitions whose arrays are, at least in part, memory-mapped.
        target: the device that trains.
    """

    def __init__(self, dataset: TransitionDataset, target: torch.device) -> None:
        super().__init__(torch.device("cpu"), target)
        self.fields: dict[str, NDArray[Any]] = {name: getattr(dataset, name) for name in Batch._fields}
        self.readers: dict[str, RowReader] = {}
        resident = 0
        for name, array in sorted(self.fields.items(), key=lambda item: item[1].nbytes):
            resident += array.nbytes if mapping_of(array) else 0
            if resident > RESIDENT_BYTES and can_be_read(array):
                self.readers[name] = RowReader(array)

    def take(self, field: str, rows: Tensor) -> Tensor:
        """Looks the rows up or reads them; see `Storage.take`."""
        source, flat = self.fields[field], rows.flatten().numpy()
        reader = self.readers.get(field)
        found = reader.read(flat) if reader else np.take(source, flat, axis=0, mode="clip")
        return torch.from_numpy(found).float().view((*rows.shape, *source.shape[1:]))


def store(
    dataset: TransitionDataset,
    target: torch.device | str,
    choice: StorageChoice = "auto",
) -> Storage:
    """Stores a dataset where sampling is fastest, or as chosen.

    Args:
        dataset: the transitions.
        target: the device that trains.
        choice: "trainer" copies them to ``target``. "cpu" keeps them in main memory, or in their mapped files, and
            copies what is drawn. "auto" is "trainer" for a GPU that has twice their size free, and else "cpu".
    """
    target = torch.device(target)
    if choice == "auto":
        choice = "trainer" if _fits(dataset, target) else "cpu"
    if choice == "trainer":
        return TensorStorage(dataset, target, target)
    if any(mapping_of(getattr(dataset, name)) for name in Batch._fields):
        return MappedStorage(dataset, target)
    return TensorStorage(dataset, torch.device("cpu"), target)


def _fits(dataset: TransitionDataset, target: torch.device) -> bool:
    if target.type == "cpu":
        return False  # sampled in place
    if target.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(target)
    size = sum(int(getattr(dataset, name).nbytes) for name in Batch._fields)
    return size <= FITTING_SHARE * free


def _tensor(array: NDArray[Any]) -> Tensor:
    """A tensor that shares an array's memory, or holds a copy if the array is read-only."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
