"""A folder of mapped .npy files."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_transitions import arrays
from tql_lightning.data import checks
from tql_lightning.data.sources.npy_folder import load_npy_folder, save_npy_folder
from tql_lightning.data.sources.npz import save_npz
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.system.files import write_whole_folder

ARRAYS = ("observations", "actions", "rewards", "next_observations", "masks", "episode_ends", "action_low")


def assert_same(ours: TransitionDataset, theirs: TransitionDataset) -> None:
    for name in (*ARRAYS, "action_high"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    assert (ours.env_id, ours.reference_scores) == (theirs.env_id, theirs.reference_scores)


def raw_folder(folder: Path, **changes: Any) -> Path:
    """A folder as somebody else would write it: float64, actions as the environment takes them."""
    folder.mkdir()
    columns = arrays(**changes)
    del columns["name"]
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", np.asarray(values))
    return folder


def test_what_is_saved_loads_again_mapped(tmp_path: Path) -> None:
    dataset = TransitionDataset.from_arrays(
        **arrays(
            action_low=-2.0, action_high=3.0, env_id="Pendulum-v1", reference_scores=(1.0, 9.0), masks=[1, 0, 1, 1, 0]
        )
    )
    save_npy_folder(tmp_path / "toy", dataset)
    loaded = load_npy_folder(str(tmp_path / "toy"))
    assert_same(loaded, dataset)
    assert loaded.name == "toy"
    for name in ("observations", "actions", "rewards", "next_observations", "masks"):
        array = getattr(loaded, name)
        assert isinstance(array, np.memmap), name
        assert array.dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_held_out_episodes_stay_mapped(tmp_path: Path) -> None:
    save_npy_folder(tmp_path / "toy", TransitionDataset.from_arrays(**arrays()))
    dataset = load_npy_folder(str(tmp_path / "toy"), validation_fraction=0.5)
    assert dataset.validation is not None
    assert (len(dataset), len(dataset.validation)) == (3, 2)
    assert isinstance(dataset.validation.observations, np.memmap)


def test_a_folder_beside_it_is_held_out(tmp_path: Path) -> None:
    dataset = TransitionDataset.from_arrays(**arrays())
    save_npy_folder(tmp_path / "toy", dataset)
    save_npy_folder(tmp_path / "toy-val", dataset.hold_out(0.5))
    loaded = load_npy_folder(str(tmp_path / "toy"))
    assert loaded.validation is not None
    assert (len(loaded), len(loaded.validation)) == (5, 3)
    with pytest.raises(DatasetError, match=r"expected 0 where .*toy-val holds transitions out already"):
        load_npy_folder(str(tmp_path / "toy"), validation_fraction=0.5)


def test_a_held_out_folder_of_another_size_is_refused(tmp_path: Path) -> None:
    save_npy_folder(tmp_path / "toy", TransitionDataset.from_arrays(**arrays()))
    wider = arrays(observations=np.ones((5, 3)), next_observations=np.ones((5, 3)))
    save_npy_folder(tmp_path / "toy-val", TransitionDataset.from_arrays(**wider))
    with pytest.raises(DatasetError, match=r"toy-val: expected sizes and action bounds \(2, 1, .* found \(3, 1, "):
        load_npy_folder(str(tmp_path / "toy"))


def test_the_same_arrays_load_from_npz_and_in_memory(tmp_path: Path) -> None:
    expected = TransitionDataset.from_arrays(**arrays(next_observations=None))
    folder = raw_folder(tmp_path / "raw", next_observations=None)
    assert_same(load_npy_folder(str(folder), in_memory=True), expected)


def test_loading_allocates_a_small_share_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BLOCK_BYTES", 1 << 14)
    size, width = 20_000, 50
    columns = np.ones((size, width), dtype=np.float32)
    ends = np.arange(size) % 100 == 99
    dataset = TransitionDataset.from_arrays(
        columns, columns[:, :4] / 2, columns[:, 0], np.zeros(size), ends, columns, name="large"
    )
    save_npy_folder(tmp_path / "large", dataset)
    del columns, dataset
    tracemalloc.start()
    loaded = load_npy_folder(str(tmp_path / "large"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(loaded) == size
    assert peak < 0.03 * size * (2 * width + 4 + 2) * 4


def test_an_error_names_the_row_of_the_file_not_of_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BLOCK_BYTES", 8)  # one row in each block
    values = np.arange(10.0, dtype=np.float32).reshape(5, 2)
    values[3, 1] = np.nan
    save_npy_folder(tmp_path / "toy", TransitionDataset.from_arrays(**arrays()))
    np.save(tmp_path / "toy" / "observations.npy", values)
    with pytest.raises(DatasetError, match=r"toy: observations: .* found nan at index \(3, 1\)"):
        load_npy_folder(str(tmp_path / "toy"))
    with pytest.raises(DatasetError, match=r"actions: .*found 2 at index \(4, 0\)"):
        TransitionDataset.from_arrays(**arrays(actions=[[0.0], [0], [0], [0], [2]]))
    with pytest.raises(DatasetError, match=r"truncations: .*found 3.0 at index 2"):
        TransitionDataset.from_arrays(**arrays(truncations=[0.0, 0, 3, 0, 1]))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError), write_whole_folder(tmp_path / "toy") as folder:
        (folder / "half.npy").write_bytes(None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "toy").mkdir()
    with pytest.raises(FileExistsError, match="toy: expected a new folder"):
        save_npy_folder(tmp_path / "toy", TransitionDataset.from_arrays(**arrays()))


def test_masks_and_scores_pass_through_npz(tmp_path: Path) -> None:
    from tql_lightning.data.sources.npz import load_npz

    columns = arrays(masks=[0, 1, 1, 1, 0], reference_scores=np.array([0.0, 2.0]), actions_scaled=np.array(True))
    del columns["name"]
    save_npz(tmp_path / "toy.npz", **columns)
    dataset = load_npz(str(tmp_path / "toy.npz"))
    assert dataset.masks.tolist() == [0, 1, 1, 1, 0]
    assert dataset.episode_ends.tolist() == [False, False, True, False, True]
    assert dataset.reference_scores == (0.0, 2.0)
