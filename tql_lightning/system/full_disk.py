"""Files and output that cannot be written, for a full disk above all: what is said, and training that goes on."""

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
    """What could not be written, why, and how much room there is where it was to be.

    Args:
        path: of the file, or of the folder of several.
        error: what was raised.
    """
    reason = error.strerror or str(error) or type(error).__name__
    return f"{path} cannot be written ({reason}; {_room(Path(path))})"


@contextmanager
def training_goes_on(path: Path | str) -> Iterator[None]:
    """Warns where the block cannot write, instead of ending training for it.

    Args:
        path: of the file, or of the folder of several.
    """
    try:
        yield
    except OSError as error:
        warnings.warn(f"{unwritten(path, error)}; training goes on", stacklevel=3)


@contextmanager
def steady_output() -> Iterator[None]:
    """What is printed in the block is lost where it cannot be, instead of ending training for a progress bar."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _SteadyStream(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def drop_unwritable_output() -> bool:
    """Sends output that cannot be written where it is lost; whether there was any."""
    lost = [stream for stream in (sys.stdout, sys.stderr) if _is_lost(stream)]
    for stream in lost:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(lost)


def _is_lost(stream: TextIO) -> bool:
    """Whether what a stream still holds cannot be written, or nobody reads it any more."""
    try:
        stream.flush()
        poller = select.poll()
        poller.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poller.poll(0))
    except io.UnsupportedOperation:  # no file, such as what a test captures
        return False
    except OSError:
        return True


class _SteadyStream:
    """A stream of text whose failures are passed over."""

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
    """Bytes that are free where a path lies or is to lie; None if that cannot be known."""
    there = next((each for each in (path.absolute(), *path.absolute().parents) if each.exists()), None)
    try:
        return None if there is None else shutil.disk_usage(there).free
    except OSError:
        return None


def _room(path: Path) -> str:
    free = free_bytes(path)
    return "free space unknown" if free is None else f"{free / 1e6:,.1f} MB are free there"
