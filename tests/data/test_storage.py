"""Where transitions are held changes where they are read, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.toy import toy_dataset
from tql_lightning.batch import Batch
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.mapped import mapping_of
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.data.storage import MappedStorage, StorageChoice, TensorStorage, store
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.data.windows import Span


def mapped(folder: Path, dataset: TransitionDataset) -> TransitionDataset:
    """The same transitions in read-only mapped files."""
    arrays: dict[str, Any] = {}
    for name in Batch._fields:
        np.save(folder / f"{name}.npy", getattr(dataset, name))
        # A view, as checks of a dataset leave it, is no np.memmap any more.
        arrays[name] = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
    return replace(dataset, **arrays)


@pytest.mark.parametrize("span", [Span(), Span(3, 2, 0.9)])
@pytest.mark.parametrize("choice", ["auto", "cpu", "trainer"])
def test_mapped_files_give_the_very_batches_of_arrays_in_memory(
    choice: StorageChoice, span: Span, tmp_path: Path
) -> None:
    dataset = toy_dataset()
    expected = TransitionSampler(dataset, 16, 3, span=span).chunk(2, 4)
    found = TransitionSampler(mapped(tmp_path, dataset), 16, 3, span=span, storage=choice).chunk(2, 4)
    for one, other in zip((*expected[0], *expected[1]), (*found[0], *found[1]), strict=True):
        assert torch.equal(one, other)


def test_each_kind_of_array_stays_where_it_is_or_is_copied_on_demand(tmp_path: Path) -> None:
    dataset = toy_dataset()
    files = mapped(tmp_path, dataset)
    in_memory = store(dataset, "cpu")
    assert isinstance(in_memory, TensorStorage)
    assert in_memory.fields["observations"].data_ptr() == dataset.observations.ctypes.data
    in_place = store(files, "cpu")
    assert isinstance(in_place, MappedStorage)
    assert np.shares_memory(in_place.fields["observations"], files.observations)
    copied = store(files, "cpu", "trainer")
    assert isinstance(copied, TensorStorage)
    assert mapping_of(copied.fields["observations"].numpy()) is None


def test_rows_of_large_files_are_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tql_lightning.data.storage.RESIDENT_BYTES", 2000)  # rewards and masks, 640 bytes each
    dataset = toy_dataset()
    files = mapped(tmp_path, dataset)
    storage = store(files, "cpu")
    assert isinstance(storage, MappedStorage)
    assert storage.readers.keys() == {"observations", "next_observations"}
    found = TransitionSampler(files, 16, 3).chunk(2, 4)[0]
    for one, other in zip(TransitionSampler(dataset, 16, 3).chunk(2, 4)[0], found, strict=True):
        assert torch.equal(one, other)
    assert dataset.validation is not None
    part = replace(files, observations=files.observations[40:])  # as held-out episodes are
    rows = torch.tensor([3, 0, 3])
    assert torch.equal(store(part, "cpu").take("observations", rows), torch.as_tensor(dataset.observations)[40 + rows])
    os.truncate(tmp_path / "observations.npy", 500)
    with pytest.raises(OSError, match=r"observations.npy: expected 12 bytes at .* it was cut while in use"):
        storage.take("observations", torch.tensor([159]))


def test_an_unknown_storage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.storage: expected auto, trainer, cpu, found gpu"):
        OfflineDataModule(toy_dataset(), storage="gpu")  # type: ignore[arg-type]


SAMPLE = """
import json, sys
import numpy as np
from tql_lightning.data import storage
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.data.transitions import TransitionDataset

observations = np.load(sys.argv[1], mmap_mode="r")
size, one = len(observations), np.ones(1, np.float32)
dataset = TransitionDataset(
    observations, np.zeros((size, 1), np.float32), np.zeros(size, np.float32), observations, np.ones(size, np.float32),
    np.arange(size) == size - 1, -one, one, "mapped",
)


def kilobytes(key):
    return int(open("/proc/self/status").read().split(key + ":")[1].split()[0])


def most_resident(budget):
    storage.RESIDENT_BYTES = budget
    sampler = TransitionSampler(dataset, 256, 0, rank=int(sys.argv[2]), world_size=2)
    before, most = kilobytes("RssFile"), 0
    for update in range(0, 200, 10):
        total = float(sampler.chunk(update, 10)[0].observations.sum())
        most = max(most, kilobytes("RssFile") - before)
    return most


before = kilobytes("RssAnon")
result = {"bounded": most_resident(10 * 2**20), "anonymous": kilobytes("RssAnon") - before}
result["unbounded"] = most_resident(10**12)
result["inodes"] = [line.split()[4] for line in open("/proc/self/maps") if line.rstrip().endswith(sys.argv[1])]
print(json.dumps(result))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ranks_map_one_file_and_keep_a_bounded_part_of_it_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "observations.npy"
    np.save(file, np.ones((400_000, 37), dtype=np.float32))  # 59 MB
    commands = [[sys.executable, "-c", SAMPLE, str(file), str(rank)] for rank in (0, 1)]
    root = Path(__file__).parents[2]
    ranks = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for command in commands]
    results = [json.loads(rank.communicate(timeout=200)[0]) for rank in ranks]
    assert len({inode for result in results for inode in result["inodes"]}) == 1
    for kilobytes in results:
        assert kilobytes["unbounded"] > 50_000
        assert kilobytes["bounded"] < 10_000
        assert kilobytes["anonymous"] < 12_000  # a copy would take 59,000
