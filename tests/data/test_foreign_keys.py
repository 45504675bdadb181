"""Files of other programs: arrays under other names, and dones that mix terminations with time limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tql_lightning.cli.main import main
from tql_lightning.data.named import convert, kind_of, load_dataset
from tql_lightning.data.sources.npy_folder import load_npy_folder
from tql_lightning.data.sources.npz import load_npz, save_npz
from tql_lightning.data.transitions import DatasetError

OTHERS = {"observations": "obs", "actions": "acts", "rewards": "rews", "next_observations": "next_obs"}
ENDS = {3: True, 8: True, 11: True}  # rows of dones; lengths 4, 5 (the limit), 3


def columns(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    dones = np.array([ENDS.get(row, False) for row in range(12)])
    found = {
        "observations": rng.normal(size=(12, 3)),
        "actions": rng.uniform(-1, 1, size=(12, 1)),
        "rewards": rng.normal(size=12),
        "next_observations": rng.normal(size=(12, 3)),
        "dones": dones,
    }
    return {name: value for name, value in (found | changes).items() if value is not None}


def foreign(path: Path, **changes: Any) -> str:
    save_npz(path, **{OTHERS.get(name, name): value for name, value in columns(**changes).items()}, infos=np.ones(12))
    return str(path)


def test_arrays_under_other_names_are_answered_with_the_mapping_that_loads_them(tmp_path: Path) -> None:
    path = foreign(tmp_path / "raw.npz")
    mapping = "{observations: obs, actions: acts, rewards: rews, next_observations: next_obs}"
    with pytest.raises(DatasetError, match=f"did you mean keys='{mapping}'") as refused:
        load_npz(path, max_episode_steps=5)
    assert "unknown: obs, acts, rews, next_obs, infos" in str(refused.value)
    loaded = load_npz(path, keys=OTHERS, max_episode_steps=5)
    np.testing.assert_allclose(loaded.rewards, columns()["rewards"], rtol=1e-6)


def test_a_mapping_that_leaves_out_what_is_there_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path / "raw.npz")
    partial = {name: other for name, other in OTHERS.items() if name != "next_observations"}
    with pytest.raises(DatasetError, match="next_observations: next_obs"):
        load_npz(path, keys=partial, max_episode_steps=5)
    with pytest.raises(DatasetError, match=r"keys: actions: .* found act; did you mean acts"):
        load_npz(path, keys=OTHERS | {"actions": "act"})


def test_a_file_that_tells_only_one_kind_of_end_is_answered_with_the_array_to_add(tmp_path: Path) -> None:
    ends = {"dones": None, "terminals": np.arange(12) == 11}
    save_npz(tmp_path / "raw.npz", **columns(**ends))
    added = "add truncations: true where a time limit cut an episode, and false everywhere if none did"
    for keys in (None, {"terminations": "terminals"}):
        with pytest.raises(DatasetError, match=added):
            load_npz(str(tmp_path / "raw.npz"), keys=keys)
    save_npz(tmp_path / "raw.npz", **columns(**ends, truncations=np.zeros(12)))
    assert load_npz(str(tmp_path / "raw.npz"), keys=keys).masks.tolist() == [1.0] * 11 + [0.0]


def test_dones_at_the_time_limit_are_truncations_and_others_terminations(tmp_path: Path) -> None:
    loaded = load_npz(foreign(tmp_path / "raw.npz"), keys=OTHERS, max_episode_steps=5)
    assert np.flatnonzero(loaded.episode_ends).tolist() == [3, 8, 11]
    assert np.flatnonzero(loaded.masks == 0).tolist() == [3, 11]
    every = load_npz(str(tmp_path / "raw.npz"), keys=OTHERS, max_episode_steps=0)
    assert np.flatnonzero(every.masks == 0).tolist() == [3, 8, 11]


def test_the_environments_own_limit_splits_dones(tmp_path: Path) -> None:
    save_npz(tmp_path / "raw.npz", **columns(dones=np.arange(12) % 6 == 5))
    loaded = load_npz(str(tmp_path / "raw.npz"), env_id="Pendulum-v1")  # 200 steps: no episode was cut
    assert loaded.env_id == "Pendulum-v1"
    assert np.flatnonzero(loaded.masks == 0).tolist() == [5, 11]


def test_the_end_of_the_recording_cuts_its_episode(tmp_path: Path) -> None:
    save_npz(tmp_path / "raw.npz", **columns(dones=np.arange(12) == 3, next_observations=None))
    loaded = load_npz(str(tmp_path / "raw.npz"), max_episode_steps=0)
    assert np.flatnonzero(loaded.masks == 0).tolist() == [3]
    assert (len(loaded), loaded.rows_left_out) == (11, 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "only ran out of time"),
        ({"max_episode_steps": 4}, "found 5 rows up to index 8"),
        ({"max_episode_steps": -1}, "found -1"),
    ],
)
def test_dones_that_cannot_be_split_are_refused_with_the_question_that_decides(
    settings: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    save_npz(tmp_path / "raw.npz", **columns())
    with pytest.raises(DatasetError, match=expected):
        load_npz(str(tmp_path / "raw.npz"), **settings)


def test_a_limit_where_nothing_is_to_be_split_is_refused(tmp_path: Path) -> None:
    ends = {"dones": None, "terminations": np.zeros(12), "truncations": np.arange(12) == 11}
    save_npz(tmp_path / "raw.npz", **columns(**ends))
    with pytest.raises(DatasetError, match=r"max_episode_steps: .* terminations and truncations, which say it already"):
        load_npz(str(tmp_path / "raw.npz"), max_episode_steps=5)


def test_folders_take_the_same_settings_and_are_converted_with_them(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, value in columns().items():
        np.save(folder / f"{OTHERS.get(name, name)}.npy", np.asarray(value, dtype=np.float32))
    expected = load_npz(foreign(tmp_path / "raw.npz"), keys=OTHERS, max_episode_steps=5)
    convert(str(folder), str(tmp_path / "large"), keys=OTHERS, max_episode_steps=5)
    for loaded in (
        load_npy_folder(str(folder), keys=OTHERS, max_episode_steps=5),
        load_dataset(str(folder), keys=OTHERS, max_episode_steps=5),
        load_dataset(str(tmp_path / "large")),
    ):
        np.testing.assert_array_equal(loaded.masks, expected.masks)


def test_inspect_and_repr_say_why_rows_were_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = foreign(tmp_path / "raw.npz", next_observations=None)
    keys = "{observations: obs, actions: acts, rewards: rews}"
    assert main(["data", "inspect", path, "--keys", keys, "--max_episode_steps", "5"]) == 0
    printed = capsys.readouterr().out
    assert "rows left out     1: the last of each episode that was cut" in printed
    loaded = load_dataset(path, keys={name: OTHERS[name] for name in ("observations", "actions", "rewards")},
                          max_episode_steps=5)  # fmt: skip
    assert printed.startswith(repr(loaded))


def test_minaris_names_are_understood_without_their_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert kind_of("mujoco/hopper/medium-v0") == "minari"
    (tmp_path / "mine-v0" / "data").mkdir(parents=True)
    assert kind_of("mine-v0") == "minari"
    with pytest.raises(DatasetError, match="other-v0: expected minari:ID"):
        kind_of("other-v0")
    folder = tmp_path / "own" / "data-v1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert kind_of("own/data-v1") == "folder"
