"""Any dataset by its name alone: loading, looking into it, converting it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.data.formats import record, write_d4rl, write_minari
from tests.data.test_d4rl import columns
from tests.data.test_npy_folder import assert_same, raw_folder
from tests.data.test_transitions import arrays
from tql_lightning.cli.main import main
from tql_lightning.data import checks
from tql_lightning.data.named import convert, kind_of, load_dataset
from tql_lightning.data.sources.d4rl import load_d4rl
from tql_lightning.data.sources.npy_folder import load_npy_folder, save_npy_folder
from tql_lightning.data.sources.npz import load_npz, save_npz
from tql_lightning.data.sources.ogbench import dataset_file
from tql_lightning.data.summary import histogram, summarise
from tql_lightning.data.transitions import DatasetError, TransitionDataset

OGBENCH = "cube-single-play-singletask-task2-v0"


def npz(path: Path, **changes: Any) -> Path:
    values = arrays(**changes)
    del values["name"]
    save_npz(path, **values)
    return path


def test_one_rule_tells_names_apart(tmp_path: Path) -> None:
    kinds = {
        "minari:mujoco/hopper/medium-v0": "minari",
        OGBENCH: "ogbench",
        "antmaze-large-navigate-singletask-v0": "ogbench",
        "data/hopper_medium-v2.hdf5": "d4rl",
        "mine.npz": "npz",
        str(tmp_path): "folder",
    }
    assert {name: kind_of(name) for name in kinds} == kinds
    for name in ("hopper-medium-v2", str(tmp_path / "absent"), "mine.csv"):
        with pytest.raises(DatasetError, match=r"expected minari:ID, .* found none of these"):
            kind_of(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("x" * 5000, "File name too long"), ("x" * 300 + ".npz", "File name too long"), ("a\0b", "null")],
)
def test_a_path_that_no_file_can_have_is_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(
        DatasetError, match=rf"expected a dataset's name or path, found none \(.*{reason}.*\)"
    ) as raised:
        load_dataset(name)
    assert len(str(raised.value)) < 250


@pytest.mark.filterwarnings("ignore:.*DISPLAY environment variable")
def test_every_source_converts_into_both_formats_and_loads_the_same(
    play_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OGBENCH_DATA_DIR", str(play_folder))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "cache"))
    env = gymnasium.make("Pendulum-v1", max_episode_steps=4)
    write_minari("toy/set-v0", env, record(env, 3, 9), ref_min_score=-9.0, ref_max_score=1.0)
    folder = tmp_path / "folder"
    save_npy_folder(folder, TransitionDataset.from_arrays(**arrays()))
    sources = {
        "ogbench": OGBENCH,
        "minari": "minari:toy/set-v0",
        "d4rl": str(write_d4rl(tmp_path / "hopper_medium-v2.hdf5", **columns())),
        "npz": str(npz(tmp_path / "mine.npz", next_observations=None)),
        "folder": str(folder),
    }
    for kind, name in sources.items():
        dataset = load_dataset(name)
        for output in (tmp_path / f"{kind}.npz", tmp_path / f"{kind}_converted"):
            convert(name, str(output))
            loaded = load_dataset(str(output))
            assert_same(loaded, dataset)
            assert (loaded.validation is None) == (dataset.validation is None)
            if loaded.validation is not None and dataset.validation is not None:
                assert_same(loaded.validation, dataset.validation)


def test_a_folder_of_any_dtype_converts_into_one_that_is_mapped(tmp_path: Path) -> None:
    changes = {"next_observations": None, "actions": np.array([[0.0], [2.0], [4.0], [1.0], [3.0]])}
    raw = raw_folder(tmp_path / "raw", **changes)
    (raw / "metadata.json").write_text('{"action_low": 0, "action_high": 4, "env_id": "A-v0"}')
    raw_folder(tmp_path / "raw-val", **changes)
    (tmp_path / "raw-val" / "metadata.json").write_text('{"action_low": 0, "action_high": 4, "env_id": "A-v0"}')
    with pytest.raises(DatasetError, match=r"expected next_observations.npy, found none"):
        load_dataset(str(raw))
    convert(str(raw), str(tmp_path / "out"))
    loaded = load_dataset(str(tmp_path / "out"))
    expected = TransitionDataset.from_arrays(**arrays(**changes, action_low=0, action_high=4, env_id="A-v0"))
    assert_same(loaded, expected)
    assert loaded.validation is not None
    assert_same(loaded.validation, expected)
    assert isinstance(loaded.actions, np.memmap)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-val", "raw", "raw-val"]


def test_converting_a_folder_holds_only_blocks_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BLOCK_BYTES", 1 << 14)
    size, width = 20_000, 50
    values: dict[str, Any] = {
        "observations": np.ones((size, width)),
        "actions": np.ones((size, 5)) / 2,
        "rewards": np.ones(size),
        "terminations": np.zeros(size, dtype=bool),
        "truncations": np.arange(size) % 100 == 99,
    }
    (tmp_path / "raw").mkdir()
    for name, value in values.items():
        np.save(tmp_path / "raw" / f"{name}.npy", value)
    del values
    tracemalloc.start()
    convert(str(tmp_path / "raw"), str(tmp_path / "out"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.05 * size * (2 * width + 5 + 2) * 4
    assert len(load_npy_folder(str(tmp_path / "out"))) == size - size // 100


def test_nothing_is_overwritten_unless_asked_and_nothing_stale_is_held_out(tmp_path: Path) -> None:
    source = str(npz(tmp_path / "mine.npz"))
    npz(tmp_path / "mine-val.npz")
    out = tmp_path / "out.npz"
    convert(source, str(out))
    (tmp_path / "mine-val.npz").unlink()
    with pytest.raises(DatasetError, match=r"out.npz exists already; pass --overwrite=true"):
        convert(source, str(out))
    convert(source, str(out), overwrite=True)
    assert load_npz(str(out)).validation is None
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatasetError, match="folder exists already; remove the folder"):
        convert(source, str(tmp_path / "folder"), overwrite=True)
    with pytest.raises(DatasetError, match=r"expected a path ending in .npz, or a folder's without an ending"):
        convert(source, str(tmp_path / "out.hdf5"))


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    source = raw_folder(tmp_path / "raw", rewards=[0.0, np.nan, 0, 0, 0])
    for output in ("out", "out.npz"):
        with pytest.raises(DatasetError, match=r"rewards: .* found nan at index \(1,\)"):
            convert(str(source), str(tmp_path / output))
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.filterwarnings("ignore:.*DISPLAY environment variable")
def test_held_out_shares_and_files_exclude_each_other(play_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OGBENCH_DATA_DIR", str(play_folder))
    with pytest.raises(DatasetError, match="validation_fraction: expected 0, as OGBench's validation file is there"):
        load_dataset(OGBENCH, validation_fraction=0.1)


def test_the_environment_can_be_named_for_any_source_but_ogbench(tmp_path: Path) -> None:
    write_d4rl(tmp_path / "hopper_medium-v2.hdf5", **columns())
    own = npz(tmp_path / "mine.npz", env_id="Pendulum-v1")
    save_npy_folder(tmp_path / "large", load_npz(str(own)))
    for name in ("hopper_medium-v2.hdf5", "mine.npz", "large"):
        assert load_dataset(str(tmp_path / name), env_id="Other-v0").env_id == "Other-v0"
    assert load_dataset(str(own)).env_id == "Pendulum-v1"
    with pytest.raises(DatasetError, match="env_id: expected none, as OGBench's task is the environment, found Other"):
        load_dataset(OGBENCH, env_id="Other-v0")


def test_reference_scores_stay_with_their_environment(tmp_path: Path) -> None:
    own = npz(tmp_path / "mine.npz", env_id="Pendulum-v1", reference_scores=np.array([0.0, 1.0]))
    save_npy_folder(tmp_path / "large", load_npz(str(own)))
    for path in (str(own), str(tmp_path / "large")):
        assert load_dataset(path, env_id="Pendulum-v1").reference_scores == (0.0, 1.0)
        with pytest.warns(UserWarning, match="reference scores are of Pendulum-v1, not of Other-v0"):
            assert load_dataset(path, env_id="Other-v0").reference_scores is None


def test_the_summary_counts_what_is_there() -> None:
    values = arrays(observations=np.stack([np.arange(5.0), np.full(5, 3.0)], axis=1), reference_scores=(0.0, 10.0))
    summary = summarise(TransitionDataset.from_arrays(**values))
    assert summary.lengths.tolist() == [3, 2]
    assert summary.returns.tolist() == [6.0, 9.0]
    assert (summary.terminals, summary.cut_episodes) == (1, 1)
    ranges = {column.field: (column.low.tolist(), column.high.tolist(), column.constant) for column in summary.columns}
    assert ranges["observations"] == ([0.0, 3.0], [4.0, 3.0], [1])
    assert ranges["rewards"] == ([1.0], [5.0], [])
    text = "\n".join(summary.lines())
    for shown in (
        "transitions       5 (held out: 0)",
        "episodes          2",
        "episode length    min 2,",
        "return            min 6, 25 % 6.75, median 7.5, mean 7.5, 75 % 8.25, max 9",
        "normalised score  min 60,",
        "terminals         1 (20.000% of transitions)",
        "cut by time       1 of 2 episodes",
        "action bounds     -1 to 1",
    ):
        assert shown in text
    assert sum(line.count("█") for line in histogram(summary.returns)) == 2 * 40


def test_inspect_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, picture = npz(tmp_path / "mine.npz", action_low=-2.0, action_high=3.0), tmp_path / "plots" / "mine.png"
    assert main(["data", "inspect", str(source), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "action bounds     -2 to 3" in printed
    assert "observations                    (5, 2)   float32   memory" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_inspect_tells_that_an_environment_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(npz(tmp_path / "mine.npz", env_id="Pendlum-v1"))]) == 0
    assert "not compared with Pendlum-v1, which cannot be made here (NameNotFound: " in capsys.readouterr().out


def test_inspect_shows_the_figures_of_what_does_not_fit_its_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = npz(tmp_path / "mine.npz", env_id="Pendulum-v1")
    assert main(["data", "inspect", str(source)]) == 2
    printed = capsys.readouterr()
    assert "environment       Pendulum-v1" in printed.out
    assert "tql: mine: observations: expected 3 columns as in Pendulum-v1, found 2" in printed.err


def test_a_wrong_command_line_names_what_is_close(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["data", "inspect", "mine.npz", "--plott=x.png"], "did you mean --plot?"),
        (["data", "inspekt", "mine.npz"], "choose from 'inspect', 'convert'"),
        (["data"], 'expected "command" to be one of {inspect,convert}'),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_convert_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_d4rl(tmp_path / "pen-human-v1.hdf5", **columns())
    assert main(["data", "convert", str(source), str(tmp_path / "pen")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'pen'}: 5 transitions in 3 episodes\n"
    assert load_npy_folder(str(tmp_path / "pen")).reference_scores == load_d4rl(str(source)).reference_scores
    assert main(["data", "convert", str(tmp_path / "absent.npz"), str(tmp_path / "x")]) == 2
    assert "absent.npz: no such file" in capsys.readouterr().err


def test_an_ogbench_file_given_as_npz_is_pointed_to_its_name(play_folder: Path) -> None:
    with pytest.raises(DatasetError, match="one of OGBench's files is loaded by its dataset's name"):
        load_dataset(str(dataset_file("cube-single-play", str(play_folder))))


def test_what_does_not_fit_its_environment_is_not_converted(tmp_path: Path) -> None:
    rows = np.zeros((2, 3))
    flags = np.array([0.0, 1.0])
    arrays = {"observations": rows, "actions": rows[:, :1], "rewards": flags, "terminations": 0 * flags}
    save_npz(tmp_path / "half.npz", **arrays, truncations=flags, next_observations=rows, env_id="Pendulum-v1")
    with pytest.raises(DatasetError, match=r"half: action_low: expected \[-2.0\] as in Pendulum-v1, found \[-1.0\]"):
        convert(str(tmp_path / "half.npz"), str(tmp_path / "other.npz"))
    assert not (tmp_path / "other.npz").exists()
