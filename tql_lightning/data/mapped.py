"""Reads memory-mapped arrays without keeping them resident."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mapping_of(array: NDArray[Any]) -> mmap.mmap | None:
    """The memory map that an array is a view of, or None."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def advise(array: NDArray[Any], advice: str) -> None:
    """Calls madvise on an array's memory map; does nothing for other arrays or systems.

    Args:
        array: Array, perhaps a view of a memory map.
        advice: Name of a constant of `mmap`. "MADV_DONTNEED" unmaps the process's pages and leaves the page cache.
    """
    mapping = mapping_of(array)
    if mapping is not None and hasattr(mapping, "madvise") and hasattr(mmap, advice):
        mapping.madvise(getattr(mmap, advice))


class RowReader:
    """Reads rows of a memory-mapped array with pread, so that none of its pages become resident.

    `numpy.memmap` alone would keep the whole file resident after a while: a page fault maps up to some megabytes of the
    page cache around a row. A read also reports a file that was cut short, where a page fault ends the process.

    Args:
        array: Array for which `can_be_read` holds.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        memmap: Any = _memmap_of(array)
        self.shape, self.dtype, self.row_bytes = array.shape[1:], array.dtype, array.strides[0]
        self.offset = memmap.offset + array.ctypes.data - memmap.ctypes.data
        self.file = Path(memmap.filename)
        self.descriptor = os.open(self.file, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # read-ahead is of no use for random rows

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Rows (R,) -> (R, ...), read in the order of the file.

        Raises:
            OSError: The file has become shorter.
        """
        result = np.empty((len(rows), *self.shape), self.dtype)
        target, size = result.reshape(-1).view(np.uint8).data, self.row_bytes
        order = np.argsort(rows)
        starts = (self.offset + rows[order] * size).tolist()
        for start in starts:  # so that the disk serves all rows at once
            os.posix_fadvise(self.descriptor, start, size, os.POSIX_FADV_WILLNEED)
        for place, start in zip((order * size).tolist(), starts, strict=True):
            if os.preadv(self.descriptor, [target[place : place + size]], start) != size:
                raise OSError(f"{self.file}: expected {size} bytes at {start}, found its end; it was cut while in use")
        return result


def can_be_read(array: NDArray[Any]) -> bool:
    """Whether an array lies in C order in a named memory-mapped file, on a system that has preadv."""
    memmap: Any = _memmap_of(array)
    named = memmap is not None and memmap.filename is not None and Path(memmap.filename).is_file()
    return named and array.flags.c_contiguous and hasattr(os, "preadv") and hasattr(os, "posix_fadvise")


def _memmap_of(array: NDArray[Any]) -> NDArray[Any] | None:
    """The outermost `numpy.memmap` that an array is a view of, or None."""
    found: NDArray[Any] | None = None
    base: Any = array
    while isinstance(base, np.ndarray):
        found = base if isinstance(base, np.memmap) else found
        base = base.base
    return found
