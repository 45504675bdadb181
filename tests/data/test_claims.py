"""Datasets that claim much, or lie strangely, and are whole."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.data.bad_files import npy_folder
from tests.data.test_transitions import arrays
from tql_lightning.data.claims import check_claim
from tql_lightning.data.named import load_dataset
from tql_lightning.data.transitions import DatasetError
from tql_lightning.trust.bounded import ALWAYS_ALLOWED_BYTES, require_regular, stored_bytes
from tql_lightning.trust.text import FileError


def test_constant_arrays_of_a_small_file_load(tmp_path: Path) -> None:
    rows = 100_000
    columns = arrays(observations=np.zeros((rows, 9)), actions=np.zeros((rows, 1)), truncations=np.ones(rows))
    columns |= {"rewards": np.zeros(rows), "terminations": np.zeros(rows), "next_observations": np.zeros((rows, 9))}
    del columns["name"]
    np.savez_compressed(tmp_path / "sparse.npz", **columns)
    assert sum(np.asarray(each).nbytes for each in columns.values()) > 200 * (tmp_path / "sparse.npz").stat().st_size
    assert len(load_dataset(str(tmp_path / "sparse.npz"))) == rows


def test_a_folder_behind_a_link_loads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    whole = Path(npy_folder()(tmp_path / "disk"))
    (tmp_path / "mounted").symlink_to(tmp_path / "disk")
    (tmp_path / "linked").symlink_to(whole)
    assert len(load_dataset(str(tmp_path / "mounted" / whole.name))) == len(load_dataset(str(tmp_path / "linked"))) == 5


def test_a_file_system_that_counts_no_blocks_is_taken_by_its_sizes() -> None:
    def file(size: int, blocks: int) -> Any:
        opened = SimpleNamespace(seek=lambda *_: 0)  # data from the first byte on
        status = SimpleNamespace(st_size=size, st_blocks=blocks)
        return SimpleNamespace(stat=lambda: status, open=lambda _: nullcontext(opened))

    large = 2 * ALWAYS_ALLOWED_BYTES
    check_claim("uncounted", large, stored_bytes(file(large, 0)))
    with pytest.raises(DatasetError, match="expected at most"):
        check_claim("a hole", large, stored_bytes(file(large, 8)))
    assert stored_bytes(file(1000, 8)) == 1000


def test_a_file_that_is_nothing_but_a_hole_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "hole"
    path.touch()
    os.truncate(path, 8 * ALWAYS_ALLOWED_BYTES)
    assert stored_bytes(path) == 0
    with pytest.raises(FileError, match="found a sparse file"):
        require_regular(path)
