"""Atomic writes: a file or folder is complete or absent."""

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
    """Yields a temporary binary file to write; then fsyncs it and renames it to ``path``, whose folder it creates.

    If the block raises, the file is removed and ``path`` is unchanged.
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
    """Yields a temporary folder to fill; then fsyncs its files and renames it to ``path``.

    If the block raises, the folder is removed.

    Raises:
        FileExistsError: ``path`` exists.
    """
    if path.exists():
        raise FileExistsError(f"{path}: expected a new folder, found that it exists; remove it, or choose another")
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
    """Fsyncs the folder, where the file system can, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, suffix: str) -> None:
    """Removes temporary files of interrupted `write_whole` calls for names that end in ``suffix``."""
    for path in folder.glob(f".*{suffix}.*.part"):
        path.unlink(missing_ok=True)


@contextmanager
def keep_replaced(path: Path, kept: Path) -> Iterator[None]:
    """Keeps the old file when the block replaces ``path`` by `write_whole`.

    Args:
        path: File that the block replaces; it may be absent.
        kept: Path for the old file, in the same folder. It is unchanged if the block raises, or if the disk has no
            room for both files. The next call removes what an interrupted one left.
    """
    held = path.with_name(f".{path.name}.part")  # a name that `remove_leftovers` does not match
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
    """Checks that a file can be written, before the long work whose result it is to hold. Leaves nothing behind.

    Raises:
        ValueError: ``path`` is a folder, or its folder cannot be created or written to.
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
