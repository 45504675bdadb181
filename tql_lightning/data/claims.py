"""Compares the size that a file claims for its arrays with its size on disk, before memory is allocated."""

from __future__ import annotations

from tql_lightning.data.checks import DatasetError
from tql_lightning.trust.bounded import ALWAYS_ALLOWED_BYTES, MAX_EXPANSION


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
