"""One run at a time in a folder."""

from __future__ import annotations

import errno
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tql_lightning.run.folder import LOCK_FILE
from tql_lightning.run.links import refuse_links, remove_unfinished
from tql_lightning.trust.text import FileError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # the file system has none


class RunLockedError(FileError):
    """Another run is using the folder; the message names its process."""


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Locks a run's folder while the block runs.

    The lock is flock's: the kernel releases it when the process ends, also by kill -9. Other machines see it where the
    network file system supports flock (NFS does since version 4). Where a file system has no locks, a warning says so.
    The lock file names the process that holds it.

    Args:
        folder: Folder of the run. It is made if needed, and removed at the end if it is empty.

    Raises:
        RunLockedError: another run holds the lock.
        ValueError: files of the run are links or pipes (see `refuse_links`), or the lock is a hard link.
        OSError: the folder cannot be made or written to.
    """
    path = folder / LOCK_FILE
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder)
        if path.is_file() and path.stat().st_nlink != 1:
            raise ValueError(f"{path}: expected a file of this run alone, found a hard link; remove it")
        lock.acquire()
    except Timeout:
        raise RunLockedError(
            f"trainer.default_root_dir: {folder} is in use by another run ({_holder(path)}); wait until it ends, or "
            "choose another folder with --trainer.default_root_dir"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OSError(
                f"trainer.default_root_dir: {folder} cannot be written to ({error.strerror}); make it writable, or "
                "choose another folder with --trainer.default_root_dir"
            ) from error
        warnings.warn(
            f"{folder}: its file system has no locks ({error.strerror}); start no second run there", stacklevel=3
        )
    try:
        with suppress(OSError):  # on a full disk the lock still holds
            path.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
        remove_unfinished(folder)
        yield
    finally:
        path.unlink(missing_ok=True)  # while locked: a process that waits for this file sees that it is gone
        lock.release()
        with suppress(OSError):
            folder.rmdir()


def wait_until_free(folder: Path, seconds: float) -> None:
    """Waits until no run uses a folder, such as one that was killed and still ends, or until the time is over."""
    path = folder / LOCK_FILE
    if path.is_file():
        with suppress(Timeout, OSError), FileLock(path, timeout=seconds, fallback_to_soft=False):
            path.unlink(missing_ok=True)


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_bytes()[:1000])
        return f"process {int(held['process'])} on {str(held['host'])[:100]}"
    except (ValueError, TypeError, KeyError, OSError):
        return "process unknown"
