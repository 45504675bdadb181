"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """A file beside ``path`` to write to, which takes its place once written and flushed to disk.

    Args:
        path: what to make or replace; its folder is made if need be.

    Yields:
        A binary file. If the block raises, ``path`` is as it was and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def require_writable(path: Path) -> None:
    """Tries to write where a file's folder is or is to be made, so that long work does not end in vain; leaves nothing.

    Raises:
        ValueError: the folder cannot be made or written to; the message names the file.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{path}: its folder cannot be written to ({error}); choose another place") from error


def write_text_whole(path: Path, text: str) -> None:
    """Writes UTF-8 text through `write_whole`."""
    with write_whole(path) as file:
        file.write(text.encode())
