"""What hostile inputs are made beside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.refusing import PRECIOUS, SOURCE
from tests.command_line import TINY
from tests.export.test_policy import trained


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint."""
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A working folder with modules that leave a trace when they are imported, and a file outside that must stay."""
    (tmp_path / "precious.txt").write_text(PRECIOUS)
    (tmp_path / "home").mkdir()
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "strangers_part.py").write_text(SOURCE)
    (folder / "part.yaml").write_text("class_path: strangers_part.fly\n")
    (folder / "tiny.yaml").write_text(TINY)
    yield folder
    assert (tmp_path / "precious.txt").read_text() == PRECIOUS
    shutil.rmtree(folder)
