"""Files that are whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        _flush_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def write_whole_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to write files into, which takes its place once they are flushed to disk.

    Args:
        path: the folder to make; nothing may be there. Its parent is made if need be.

    Yields:
        The folder to fill. If the block raises, nothing is left.

    Raises:
        FileExistsError: there is something at ``path``.
    """
    if path.exists():
        raise FileExistsError(f"{path}: expected nothing there, found a file or folder; remove it, or choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        temporary.chmod(0o755)
        temporary.rename(path)
        _flush_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _flush_folder(folder: Path) -> None:
    """Has a new name on disk too, which the file alone does not bring about; where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, suffix: str) -> None:
    """Removes what interrupted calls of `write_whole` left beside files of a suffix."""
    for path in folder.glob(f".*{suffix}.*.part"):
        path.unlink(missing_ok=True)


@contextmanager
def keep_replaced(path: Path, kept: Path) -> Iterator[None]:
    """Keeps what is at ``path`` when the block begins, at ``kept``, once the block has replaced it by a new file.

    Args:
        path: what the block replaces as `write_whole` does, not in place; nothing may be there.
        kept: in the same folder. Until the block has ended well it is as it was, and so if there is no room for
            both. What an interrupted call leaves, the next one removes.
    """
    held = path.with_name(f".{path.name}.part")  # no leftover that `remove_leftovers` would take while the block writes
    held.unlink(missing_ok=True)
    if path.exists():
        try:
            os.link(path, held)
        except OSError:  # a file system without hard links
            try:
                shutil.copy2(path, held)
            except OSError:
                held.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        held.unlink(missing_ok=True)
        raise
    if held.exists():
        held.replace(kept)


def require_writable(path: Path) -> None:
    """Tries to write where a file's folder is or is to be made, so that long work does not end in vain; leaves nothing.

    Raises:
        ValueError: the folder cannot be made or written to, or a folder has the file's name; the message names it.
    """
    if path.is_dir():
        raise ValueError(f"{path}: expected a file to write, found a folder of this name; name a file in it")
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
