"""What hostile inputs are made beside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.refusing import PRECIOUS, SOURCE, assert_harmless
from tests.command_line import TINY
from tests.export.test_policy import trained

TEN_UPDATES = ("fit", "--config", "tiny.yaml", "--data.dataset=tests.toy.toy_dataset", "--trainer.max_steps=10")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint."""
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run of the command line."""
    folder = tmp_path_factory.mktemp("run") / "work"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TINY)
    assert_harmless(folder, TEN_UPDATES, code=0, within=("run",))
    return folder / "run" / "checkpoints" / "last.ckpt"


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
