"""Failed writes, usually on a full disk: their messages, and warnings in place of errors that would end training."""

from __future__ import annotations

import io
import os
import select
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast


def unwritten(path: Path | str, error: OSError) -> str:
    """Describes a failed write to a file, or to a folder of several: path, reason and free space."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{path} cannot be written ({reason}; {_room(Path(path))})"


@contextmanager
def training_goes_on(path: Path | str) -> Iterator[None]:
    """Turns an OSError of the block, which writes a file or a folder of several, into a warning."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{unwritten(path, error)}; training goes on", stacklevel=3)


@contextmanager
def steady_output() -> Iterator[None]:
    """Ignores failed writes to stdout and stderr in the block, so that no progress bar ends training."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _TolerantStream(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def drop_unwritable_output() -> bool:
    """Redirects stdout and stderr to the null device where they cannot be written; returns whether one was."""
    lost = [stream for stream in (sys.stdout, sys.stderr) if _is_lost(stream)]
    for stream in lost:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    return bool(lost)


def _is_lost(stream: TextIO) -> bool:
    """Whether the stream's buffer cannot be flushed, or the reading end of its pipe is closed."""
    try:
        stream.flush()
        poller = select.poll()
        poller.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poller.poll(0))
    except io.UnsupportedOperation:  # not a file, as under pytest
        return False
    except OSError:
        return True


class _TolerantStream:
    """A text stream that ignores OSError."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def free_bytes(path: Path) -> int | None:
    """Free bytes on the disk of a path, which need not exist yet; None if they cannot be found out."""
    existing = next((each for each in (path.absolute(), *path.absolute().parents) if each.exists()), None)
    try:
        return None if existing is None else shutil.disk_usage(existing).free
    except OSError:
        return None


def _room(path: Path) -> str:
    free = free_bytes(path)
    return "free space unknown" if free is None else f"{free / 1e6:,.1f} MB are free there"
