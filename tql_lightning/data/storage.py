"""Where a dataset's arrays lie while it is sampled: on the device that trains, in main memory, or in mapped files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tql_lightning.batch import Batch
from tql_lightning.data.mapped import advise, mapping_of
from tql_lightning.data.transitions import TransitionDataset

StorageChoice = Literal["auto", "trainer", "cpu"]
FITTING_SHARE = 0.5  # of the free memory of a device; the rest is for networks and activations
RESIDENT_BYTES = 256 * 2**20  # of mapped files, in this process's memory at once
FAULT_BYTES = 64 * 2**10  # that the kernel maps around a page that is read


class Storage(ABC):
    """Arrays of N transitions that rows are taken from.

    Attributes:
        device: where rows are given and taken.
        target: the device that trains.
    """

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
            The shape of ``rows``, and after it the field's own columns if it has any; on ``device``, in page-locked
            memory where it is to be copied to a GPU.
        """

    def deliver(self, batch: Batch) -> Batch:
        """A batch on the device that trains; a copy to a GPU does not wait for what the GPU is doing."""
        if self.device == self.target:
            return batch
        fields = (field.pin_memory() if self.pinned and not field.is_pinned() else field for field in batch)
        return Batch(*(field.to(self.target, non_blocking=True) for field in fields))

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device, pin_memory=self.pinned)


class TensorStorage(Storage):
    """Tensors on one device.

    Args:
        dataset: the transitions; arrays in main memory are shared, not copied, where they can be.
        device: where to hold them.
        target: the device that trains.
        dtype: floating type of what is taken.
    """

    def __init__(
        self, dataset: TransitionDataset, device: torch.device, target: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(device, target)
        self.fields = {name: _tensor(getattr(dataset, name)).to(device, dtype) for name in Batch._fields}

    def take(self, field: str, rows: Tensor) -> Tensor:
        """One gather; see `Storage.take`."""
        source = self.fields[field]
        shape = (*rows.shape, *source.shape[1:])
        if not self.pinned:
            return source.index_select(0, rows.flatten()).view(shape)
        out = self._empty((rows.numel(), *source.shape[1:]), source.dtype)
        return torch.index_select(source, 0, rows.flatten(), out=out).view(shape)


class MappedStorage(Storage):
    """Files mapped into memory and read in place, so that a dataset may be larger than memory.

    Rows are read in the order of the file. Pages stay in the kernel's cache, which all processes that map the same
    file share and which shrinks when memory is needed; of them this process keeps ``RESIDENT_BYTES`` at most.

    Args:
        dataset: transitions whose arrays are, at least in part, memory-mapped.
        target: the device that trains.
        dtype: floating type of what is taken.
    """

    def __init__(self, dataset: TransitionDataset, target: torch.device, dtype: torch.dtype) -> None:
        super().__init__(torch.device("cpu"), target)
        self.dtype = dtype
        self.fields: dict[str, NDArray[Any]] = {name: getattr(dataset, name) for name in Batch._fields}
        self._mapped = {name: array for name, array in self.fields.items() if mapping_of(array)}
        self._may_outgrow = sum(array.nbytes for array in self._mapped.values()) > RESIDENT_BYTES
        self._touched = 0
        if self._may_outgrow:
            self._advise("MADV_RANDOM")  # reading ahead of a random row would read thirty times as much

    def take(self, field: str, rows: Tensor) -> Tensor:
        """Reads the rows in ascending order; see `Storage.take`."""
        source = self.fields[field]
        flat = rows.flatten().numpy()
        order = np.argsort(flat)
        out = self._empty((len(flat), *source.shape[1:]), self.dtype)
        out.numpy()[order] = np.take(
            source, flat[order], axis=0, mode="clip"
        )  # rows are within; "clip" reads unbuffered
        if self._may_outgrow and field in self._mapped:
            self._release(len(flat) * (FAULT_BYTES + source.nbytes // len(source)))
        return out.view((*rows.shape, *source.shape[1:]))

    def _release(self, touched: int) -> None:
        """Hands pages back once so many bytes may have become resident."""
        self._touched += touched
        if self._touched > RESIDENT_BYTES:
            self._advise("MADV_DONTNEED")
            self._touched = 0

    def _advise(self, advice: str) -> None:
        for array in self._mapped.values():
            advise(array, advice)


def store(
    dataset: TransitionDataset,
    target: torch.device | str,
    choice: StorageChoice = "auto",
    dtype: torch.dtype = torch.float32,
) -> Storage:
    """Holds a dataset where it is sampled fastest, or where it is told to.

    Args:
        dataset: the transitions.
        target: the device that trains.
        choice: "trainer" copies them to ``target``. "cpu" keeps them in main memory, or in their mapped files, and
            copies what is drawn. "auto" is "trainer" for a GPU that has twice their size free, and else "cpu".
        dtype: floating type of what is drawn.
    """
    target = torch.device(target)
    if choice == "auto":
        choice = "trainer" if _fits(dataset, target) else "cpu"
    if choice == "trainer":
        return TensorStorage(dataset, target, target, dtype)
    if any(mapping_of(getattr(dataset, name)) for name in Batch._fields):
        return MappedStorage(dataset, target, dtype)
    return TensorStorage(dataset, torch.device("cpu"), target, dtype)


def _fits(dataset: TransitionDataset, target: torch.device) -> bool:
    if target.type == "cpu":
        return False  # where it lies is where it is sampled
    if target.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(target)
    size = sum(int(getattr(dataset, name).nbytes) for name in Batch._fields)
    return size <= FITTING_SHARE * free


def _tensor(array: NDArray[Any]) -> Tensor:
    """A tensor that shares an array's memory, or if it must not be written to holds a copy."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
