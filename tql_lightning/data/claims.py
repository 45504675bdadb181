"""Compares the size that a file claims for its arrays with its size on disk, before memory is allocated."""

from __future__ import annotations

from pathlib import Path

from tql_lightning.data.checks import DatasetError

MAX_EXPANSION = 100  # largest ratio of unpacked to stored bytes; recorded numbers reach 10
ALWAYS_ALLOWED_BYTES = 1 << 26  # constant columns of a small dataset compress a thousandfold


def stored_bytes(path: Path) -> int:
    """Bytes that a file takes on disk; a sparse file takes fewer than its size."""
    status = path.stat()
    blocks = getattr(status, "st_blocks", 0)  # in units of 512 bytes; 0 on file systems that do not count them
    return min(status.st_size, 512 * blocks) if blocks else status.st_size


def check_claim(where: str, claimed: int, stored: int) -> None:
    """Rejects a claimed size that no real recording reaches.

    Args:
        where: File, and array if the claim is about one.
        claimed: Bytes of the arrays in memory.
        stored: Bytes on disk that the arrays are read from.

    Raises:
        DatasetError: The claim exceeds what `ALWAYS_ALLOWED_BYTES` and `MAX_EXPANSION` allow.
    """
    most = ALWAYS_ALLOWED_BYTES + MAX_EXPANSION * stored
    if claimed > most:
        raise DatasetError(
            f"{where}: expected at most {most:,} bytes of arrays from {stored:,} bytes on disk, found {claimed:,} "
            "claimed; it is damaged or forged: fetch it again, or write it without compression"
        )
