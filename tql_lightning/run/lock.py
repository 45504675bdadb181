"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tql_lightning.run.folder import LOCK_FILE
from tql_lightning.run.links import refuse_links
from tql_lightning.trust.text import FileError


class RunLockedError(FileError):
    """Another run is using the folder; the message names its process."""


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Holds a run's folder for the time of the block.

    The kernel holds the lock (flock) for as long as the process lives, so that what kill -9 leaves is no obstacle; the
    file says who has it, and is removed at the end. Network file systems pass it on to other machines if they support
    flock (NFS since version 4 does); where a file system cannot, a warning says so.

    Args:
        folder: the run's; made if need be, and removed again if the block leaves it empty.

    Raises:
        RunLockedError: another run holds it.
        ValueError: files of the run are links, see `refuse_links`.
        OSError: the folder cannot be made or written to.
    """
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder)
        descriptor = _open_locked(path)
    except OSError as error:
        raise OSError(
            f"trainer.default_root_dir: {folder} cannot be written to ({error.strerror}); make it writable, or choose "
            "another folder with --trainer.default_root_dir"
        ) from error
    try:
        holder = {"process": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        with suppress(OSError):  # a full disk: the lock is held all the same
            os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is let go: whoever waits for this file looks again
        os.close(descriptor)
        with suppress(OSError):
            folder.rmdir()


def _open_locked(path: Path) -> int:
    """An open file that this process alone has locked, and that is still the one at ``path``."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(descriptor)
            raise ValueError(f"{path}: expected a file of this run alone, found another file's name; remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise RunLockedError(
                f"trainer.default_root_dir: {path.parent} is in use by another run ({holder}); wait for its end, or "
                "choose another folder with --trainer.default_root_dir"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{path.parent}: its file system has no locks ({error.strerror}); start no second run there",
                stacklevel=4,
            )
            return descriptor
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # its holder has just ended, and removed it


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        held = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {int(held['process'])} on {str(held['host'])[:100]}"
    except (ValueError, TypeError, KeyError, OSError):
        return "process unknown"
