"""What a file claims to hold, compared with what it can hold, before memory is taken for it."""

from __future__ import annotations

from pathlib import Path

from tql_lightning.data.checks import DatasetError

EXPANSION = 100  # times its size that a file may unpack to; recorded numbers reach 10
HARMLESS = 1 << 26  # bytes that may always be claimed: constant columns of a small dataset compress a thousandfold


def stored_bytes(path: Path) -> int:
    """Bytes that a file takes on disk; less than its size where it has holes."""
    status = path.stat()
    blocks = getattr(status, "st_blocks", 0)  # of 512 bytes; 0 too on file systems that do not count them
    return min(status.st_size, 512 * blocks) if blocks else status.st_size


def check_claim(where: str, claimed: int, stored: int) -> None:
    """Refuses what can only be a mistake or a trap.

    Args:
        where: file, and array if it is one's.
        claimed: bytes of its arrays in memory.
        stored: bytes on disk that they are read from.

    Raises:
        DatasetError: more is claimed than `HARMLESS` and `EXPANSION` allow.
    """
    most = HARMLESS + EXPANSION * stored
    if claimed > most:
        raise DatasetError(
            f"{where}: expected at most {most:,} bytes of arrays from {stored:,} bytes on disk, found {claimed:,} "
            "claimed; it is damaged or forged: fetch it again, or write it without compression"
        )
