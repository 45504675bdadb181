"""Arrays that lie in mapped files."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mapping_of(array: NDArray[Any]) -> mmap.mmap | None:
    """The mapped file that an array is a view of, or None."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def advise(array: NDArray[Any], advice: str) -> None:
    """Tells the kernel how a mapped file is used; nothing happens for other arrays, or where it takes no advice.

    Args:
        array: maybe a view of a mapped file.
        advice: name of a constant of `mmap`, such as "MADV_DONTNEED" to hand back what is resident in this process,
            which leaves the kernel's cache as it is.
    """
    mapping = mapping_of(array)
    if mapping is not None and hasattr(mapping, "madvise") and hasattr(mmap, advice):
        mapping.madvise(getattr(mmap, advice))


class RowReader:
    """Rows of a mapped array, read from its file instead, so that nothing of it becomes resident in this process.

    A page fault maps up to some megabytes of what the kernel has cached around a row; a read copies the row.

    Args:
        array: as `can_be_read` wants it.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        memmap: Any = _memmap_of(array)
        self.shape, self.dtype, self.row_bytes = array.shape[1:], array.dtype, array.strides[0]
        self.offset = memmap.offset + array.ctypes.data - memmap.ctypes.data
        self.file = Path(memmap.filename)
        self.descriptor = os.open(self.file, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # nobody wants what lies behind a row

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Rows (R,) -> (R, ...); they are read in the order of the file.

        Raises:
            OSError: the file has become shorter.
        """
        result = np.empty((len(rows), *self.shape), self.dtype)
        target, size = result.reshape(-1).view(np.uint8).data, self.row_bytes
        order = np.argsort(rows)
        starts = (self.offset + rows[order] * size).tolist()
        for start in starts:  # the disk works on all of them at once
            os.posix_fadvise(self.descriptor, start, size, os.POSIX_FADV_WILLNEED)
        for place, start in zip((order * size).tolist(), starts, strict=True):
            if os.preadv(self.descriptor, [target[place : place + size]], start) != size:
                raise OSError(f"{self.file}: expected {size} bytes at {start}, found its end; it was cut while in use")
        return result


def can_be_read(array: NDArray[Any]) -> bool:
    """Whether an array lies row after row in a file that is mapped by name, on a system that reads at a position."""
    memmap: Any = _memmap_of(array)
    named = memmap is not None and memmap.filename is not None and Path(memmap.filename).is_file()
    return named and array.flags.c_contiguous and hasattr(os, "preadv") and hasattr(os, "posix_fadvise")


def _memmap_of(array: NDArray[Any]) -> NDArray[Any] | None:
    """The array that was mapped, of which this one may be a view or a part."""
    found: NDArray[Any] | None = None
    base: Any = array
    while isinstance(base, np.ndarray):
        found = base if isinstance(base, np.memmap) else found
        base = base.base
    return found
