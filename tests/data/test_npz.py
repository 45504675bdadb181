"""The project's own dataset file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.test_transitions import arrays
from tql_lightning.data.sources.npz import load_npz, save_npz
from tql_lightning.data.transitions import DatasetError
from tql_lightning.system.files import write_whole


def saved(path: Path) -> Path:
    columns = arrays()
    del columns["name"]
    save_npz(path, **columns, env_id=np.array("Pendulum-v1"), action_low=np.array([-1.0]), action_high=np.array([1.0]))
    return path


def test_what_is_saved_loads_again(tmp_path: Path) -> None:
    dataset = load_npz(str(saved(tmp_path / "toy.npz")))
    assert dataset.env_id == "Pendulum-v1"
    assert dataset.name == "toy"
    np.testing.assert_array_equal(dataset.next_observations, arrays()["next_observations"])
    assert [path.name for path in tmp_path.iterdir()] == ["toy.npz"]


def test_held_out_episodes_are_not_trained_on(tmp_path: Path) -> None:
    dataset = load_npz(str(saved(tmp_path / "toy.npz")), validation_fraction=0.5)
    assert dataset.validation is not None
    assert (len(dataset), len(dataset.validation)) == (3, 2)
    everything = load_npz(str(tmp_path / "toy.npz"))
    assert everything.validation is None
    joined = np.concatenate([dataset.rewards, dataset.validation.rewards])
    np.testing.assert_array_equal(joined, everything.rewards)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "toy.npz")
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="observations: expected numbers or strings, found dtype object"):
        save_npz(path, observations=np.array([None, object()]))
    with pytest.raises(TypeError), write_whole(path) as file:
        file.writelines([b"half of it", None])  # type: ignore[list-item]
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["toy.npz"]


def test_an_impossible_fraction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="validation_fraction: expected at least 0 and below 1, found 1"):
        load_npz(str(saved(tmp_path / "toy.npz")), validation_fraction=1.0)
