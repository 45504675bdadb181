"""Reads small files of others: regular ones, of a bounded size, whose bytes are on the disk."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from tql_lightning.trust.text import FileError

MAX_EXPANSION = 100  # largest ratio of claimed to stored bytes; recorded numbers reach 10
ALWAYS_ALLOWED_BYTES = 1 << 26  # constant columns of a small dataset compress a thousandfold
MOST_BYTES = 1 << 26  # of a JSON file


def stored_bytes(path: Path) -> int:
    """Bytes that a file takes on disk; a sparse file takes fewer than its size."""
    status = path.stat()
    blocks = getattr(status, "st_blocks", 0)  # in units of 512 bytes; 0 on file systems that do not count them
    if blocks or status.st_size <= ALWAYS_ALLOWED_BYTES or not hasattr(os, "SEEK_DATA"):
        return min(status.st_size, 512 * blocks) if blocks else status.st_size
    with path.open("rb") as file:
        try:
            file.seek(0, os.SEEK_DATA)
        except OSError:  # nothing but a hole
            return 0
    return status.st_size


def require_regular(path: Path, most: int | None = None) -> None:
    """Rejects pipes and devices, which may never end, and files that are sparse or too large.

    Args:
        path: Path of the file.
        most: Largest size in bytes; None for any that the disk holds.

    Raises:
        FileError: The file is one of these.
        OSError: There is no such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path}: expected a file, found a pipe, a folder or a device; remove it")
    if most is not None and status.st_size > most:
        raise FileError(f"{path}: expected at most {most:,} bytes, found {status.st_size:,}; remove it")
    if status.st_size > ALWAYS_ALLOWED_BYTES + MAX_EXPANSION * stored_bytes(path):
        raise FileError(f"{path}: expected {status.st_size:,} bytes, found a sparse file without them; fetch it again")


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Text of a file, which `require_regular` accepts.

    Raises:
        ValueError: It does not, or the text is not UTF-8.
        OSError: The file cannot be read.
    """
    require_regular(path, most)
    return path.read_text(encoding="utf-8")


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """Plain data of a JSON file; raises as `read_text` does, and a ValueError where it is none."""
    try:
        return json.loads(read_text(path, most))
    except RecursionError as error:
        raise ValueError("JSON: expected values that are not nested so deep") from error
