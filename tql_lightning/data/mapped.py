"""Arrays that lie in mapped files."""

from __future__ import annotations

import mmap
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
        advice: name of a constant of `mmap`: "MADV_RANDOM", or "MADV_DONTNEED" to hand back what is resident in this
            process, which leaves the kernel's cache as it is.
    """
    mapping = mapping_of(array)
    if mapping is not None and hasattr(mapping, "madvise") and hasattr(mmap, advice):
        mapping.madvise(getattr(mmap, advice))
