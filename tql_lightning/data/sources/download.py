"""Downloads of large files: continued where they broke off, whole or absent, compared with a checksum."""

from __future__ import annotations

import hashlib
import http.client
import os
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

ATTEMPTS = 3  # of one call; each continues where the last one broke off
TIMEOUT = 30.0  # seconds without any byte
BLOCK = 1 << 20
PARTIAL_CONTENT, BAD_RANGE = 206, 416


class DownloadError(OSError):
    """A download broke off, or the file is not the one that its checksum is of."""


def download(url: str, path: Path) -> None:
    """Fetches a file; a part that an earlier call left is continued.

    Where the server has ``URL.sha256`` (as ``sha256sum`` writes it), the file is compared with it. The part stays in
    ``.NAME.download`` until the file is complete.

    Args:
        url: Address of the file.
        path: File to write; its folder is made.

    Raises:
        DownloadError: The download broke off several times, or the checksum differs; then nothing is kept.
        OSError: The server cannot be reached or has no such file, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.download")
    for attempt in range(ATTEMPTS):
        try:
            _continue(url, part, path.name)
            break
        except (DownloadError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if attempt == ATTEMPTS - 1:
                size = part.stat().st_size if part.is_file() else 0
                raise DownloadError(
                    f"{url}: broke off after {size:,} bytes ({error}); the same command continues from there"
                ) from error
    expected = _checksum(f"{url}.sha256")
    found = _digest(part) if expected else expected
    if found != expected:
        part.unlink()
        raise DownloadError(f"{url}: expected a file with SHA-256 {expected}, found {found}; fetch it again")
    part.replace(path)


def _continue(url: str, part: Path, name: str) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code != BAD_RANGE:
            raise
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total == str(have):
            return  # the part is complete
        part.unlink()
        raise DownloadError("the file has changed") from error
    with response:
        start = have if response.status == PARTIAL_CONTENT else 0
        length = response.headers.get("Content-Length")
        total_bytes = None if length is None else start + int(length)
        bar = tqdm(total=total_bytes, initial=start, unit="B", unit_scale=True, desc=name)
        with bar, part.open("ab" if start else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if total_bytes is not None and size != total_bytes:
        raise DownloadError(f"{total_bytes:,} expected")


def _checksum(url: str) -> str | None:
    """The checksum in a file of ``sha256sum``; None where the server has none."""
    with suppress(HTTPError), urlopen(url, timeout=TIMEOUT) as response:
        words = response.read(1000).decode(errors="replace").split()
        return words[0].lower() if words else None
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
