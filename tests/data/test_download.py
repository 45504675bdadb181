"""Downloads over HTTP from this machine: whole, cut off, resumed, damaged, from a mirror."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from tql_lightning.data.sources.download import ATTEMPTS, DownloadError, download
from tql_lightning.data.sources.ogbench import URL_VARIABLE, load_ogbench
from tql_lightning.data.transitions import DatasetError

CONTENT = np.random.default_rng(0).bytes(100_000)
CUT = 30_000


class Mirror(ThreadingHTTPServer):
    """Serves `CONTENT`, with a checksum if there is one; ends the first ``cuts`` answers early."""

    cuts = 0
    checksum: str | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.npz"


class Answer(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        if self.path.endswith(".sha256"):
            checksum = self.server.checksum
            self.send_response(200 if checksum else 404)
            self.end_headers()
            self.wfile.write(f"{checksum}  file.npz\n".encode() if checksum else b"")
            return
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.server.cuts -= 1
        end = start + CUT if self.server.cuts >= 0 else len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Mirror() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_download_that_is_cut_off_continues_where_it_broke_off(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = 2
    download(mirror.url, tmp_path / "file.npz")
    assert mirror.ranges == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"]
    assert (tmp_path / "file.npz").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.npz"]


def test_a_later_call_resumes_what_broke_off_too_often(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = ATTEMPTS
    mirror.checksum = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(DownloadError, match=r"broke off after 90,000 bytes .*the same command continues"):
        download(mirror.url, tmp_path / "file.npz")
    assert not (tmp_path / "file.npz").exists()
    download(mirror.url, tmp_path / "file.npz")
    assert mirror.ranges[-1] == f"bytes={ATTEMPTS * CUT}-"
    assert (tmp_path / "file.npz").read_bytes() == CONTENT


def test_a_part_that_is_complete_is_not_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / ".file.npz.download").write_bytes(CONTENT)
    download(mirror.url, tmp_path / "file.npz")
    assert (tmp_path / "file.npz").read_bytes() == CONTENT


def test_a_wrong_checksum_keeps_nothing(mirror: Mirror, tmp_path: Path) -> None:
    mirror.checksum = "0" * 64
    found = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(DownloadError, match=rf"expected a file with SHA-256 {'0' * 64}, found {found}; fetch it again"):
        download(mirror.url, tmp_path / "file.npz")
    assert list(tmp_path.iterdir()) == []


def test_ogbenchs_datasets_come_from_the_mirror_that_is_set(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, mirror.url.removesuffix("/file.npz"))
    with pytest.raises(DatasetError, match="expected plain arrays"):  # not what the mirror has
        load_ogbench("cube-single-play", dataset_dir=str(tmp_path))
    names = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert names == {"cube-single-play-v0.npz": CONTENT, "cube-single-play-v0-val.npz": CONTENT}
