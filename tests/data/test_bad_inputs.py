"""Every way we know for a dataset to be wrong, and what its user is told: field or file, place, found, remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.bad_files import (
    Write,
    cut_array,
    cut_hdf5,
    d4rl,
    empty_folder,
    folder_for_metadata,
    grouped_hdf5,
    larger_than_its_file,
    named,
    npy_folder,
    npz,
    npz_bytes,
    other_bytes,
    settings,
    single_array,
    wrong_held_out,
)
from tql_lightning.data.named import load_dataset
from tql_lightning.data.transitions import DatasetError

NAN_AT_3 = [0.0, 0.0, 0.0, np.nan, 0.0]

BAD: dict[str, tuple[Write, tuple[str, ...]]] = {
    # What arrays hold.
    "nan": (npz(rewards=NAN_AT_3), ("bad: rewards: expected finite", "found nan at index (3,) (1 rows", "remove such")),
    "infinite": (npz(observations=np.full((5, 2), np.inf)), ("inf at index (0, 0) (5 rows in all, columns 0, 1)",)),
    "minus infinity": (npz(actions=[[0.0], [-np.inf], [0], [0], [0]]), ("actions: expected", "-inf at index (1, 0)")),
    "nan next": (
        npz(next_observations=np.array([[0.0, np.nan]] * 5)),
        ("next_observations: expected finite", "index (0, 1) (5 rows in all, columns 1)"),
    ),
    "too large for float32": (npz(rewards=[1.0, 1.0, 1e300, 1, 1]), ("rewards", "found 1e+300 at index (2,)")),
    "nan as a flag": (npz(truncations=NAN_AT_3), ("truncations: expected finite", "index (3,)")),
    "too few rewards": (npz(rewards=np.ones(4)), ("rewards: expected 5 transitions", "found 4", "one row per")),
    "too many actions": (npz(actions=np.ones((6, 1))), ("actions: expected 5 transitions", "found 6")),
    "too few ends": (npz(truncations=np.ones(4)), ("truncations: expected 5 transitions", "found 4")),
    "too few next observations": (npz(next_observations=np.ones((4, 2))), ("next_observations: expected 5", "found 4")),
    "flat actions": (npz(actions=np.ones(5)), ("actions: expected shape (transitions, size), found (5,); reshape",)),
    "flat observations": (npz(observations=np.ones(5)), ("observations: expected shape", "found (5,)")),
    "pictures": (npz(observations=np.ones((5, 2, 2, 3))), ("observations: expected shape", "found (5, 2, 2, 3)")),
    "rewards of rank 2": (npz(rewards=np.ones((5, 1))), ("rewards: expected shape (transitions,), found (5, 1)",)),
    "terminations of rank 2": (npz(terminations=np.ones((5, 1))), ("terminations: expected shape (transitions,)",)),
    "strings": (npz(rewards=np.array(["a"] * 5)), ("rewards: expected numbers, found dtype <U1; convert it",)),
    "complex numbers": (npz(rewards=np.ones(5) * 1j), ("rewards: expected numbers, found dtype complex128",)),
    "dates": (npz(rewards=np.zeros(5, "datetime64[s]")), ("rewards: expected numbers, found dtype datetime64",)),
    "no transitions": (
        npz(observations=np.ones((0, 2))),
        ("observations: expected at least one", "found shape (0, 2)"),
    ),
    "no columns": (npz(actions=np.ones((5, 0))), ("actions: expected at least one", "found shape (5, 0)")),
    "counts as flags": (npz(terminations=[0, 0, 2, 0, 1]), ("terminations: expected 0 or 1", "found 2 at index 2")),
    "shares as flags": (npz(truncations=[0, 0.5, 0, 0, 1]), ("truncations: expected 0 or 1", "found 0.5 at index 1")),
    "shares as masks": (npz(masks=[1, 1, 0.5, 1, 0]), ("masks: expected 0 or 1", "found 0.5 at index 2")),
    "masks against terminations": (
        npz(masks=np.ones(5)),
        ("masks: expected 0 where terminations are 1, found 1 at index 4", "a time limit is a truncation"),
    ),
    "actions outside": (
        npz(actions=[[0.0], [1.5], [0], [0], [-3]]),
        ("actions: expected values in [-1, 1]", "found 1.5 at index (1, 0)", "range of [-3, 1.5]", "action_low"),
    ),
    "actions outside their bounds": (
        npz(action_low=-0.5, action_high=0.5),
        ("actions: expected values in [-0.5, 0.5], found 1 at index (3, 0)",),
    ),
    "scaled actions outside": (
        npz(actions=np.full((5, 1), 2.0), action_low=-2.0, action_high=2.0, actions_scaled=True),
        ("actions: expected values in [-1, 1], found 2 at index (0, 0)",),
    ),
    "bounds the wrong way": (npz(action_low=1.0, action_high=-1.0), ("action bounds: expected finite action_low <",)),
    "infinite bounds": (npz(action_high=np.inf), ("action bounds: expected finite", "found [-1.0] and [inf]")),
    "too many bounds": (npz(action_low=[-1.0, -1.0]), ("action_low: expected 1 bounds, found shape (2,)", "for each")),
    "bounds as strings": (npz(action_low="low"), ("action_low: expected 1 bounds, found shape () of <U3",)),
    "no end": (
        npz(terminations=np.zeros(5)),
        ("truncations: expected 1 at index 4, found 0", "nor is truncated; mark where"),
    ),
    "one episode without an end": (
        npz(terminations=np.zeros(5), truncations=np.zeros(5)),
        ("the last transition neither terminates nor is truncated",),
    ),
    "next observations' size": (
        npz(next_observations=np.ones((5, 3))),
        ("next_observations: expected shape (5, 2) as observations, found (5, 3)",),
    ),
    "episodes of one row": (
        npz(next_observations=None, truncations=np.ones(5), terminations=np.zeros(5)),
        ("every episode has one row and no next_observations; nothing is left",),
    ),
    "expert below random": (npz(reference_scores=[2.0, 1.0]), ("reference_scores: expected", "found [2.0, 1.0]")),
    "one score": (
        npz(reference_scores=[2.0]),
        ("reference_scores: expected the returns of a random and of an expert",),
    ),
    # Our own file.
    "no file": (named("FOLDER/absent.npz"), ("absent.npz: no such file", "tql collect ENVIRONMENT --output")),
    "cut short": (npz_bytes(lambda whole: whole[: len(whole) // 2]), ("bad.npz: expected a whole npz", "remove it")),
    "no bytes": (npz_bytes(lambda _: b""), ("bad.npz: expected a whole npz file, found a damaged one",)),
    "flipped byte": (
        npz_bytes(lambda whole: whole.replace(np.float64(4.0).tobytes(), np.float64(5.0).tobytes(), 1)),
        ("bad.npz: expected a whole npz file, found a damaged one", "CRC"),
    ),
    "text": (other_bytes(".npz"), ("bad.npz: expected plain arrays", "save it again with numpy.savez")),
    "a single array": (single_array, ("bad.npz: expected an npz archive of arrays, found a single array",)),
    "pickled": (npz(rewards=np.array([None] * 5)), ("bad.npz: expected plain arrays", "pickle", "dtypes of numbers")),
    "larger than its file": (
        larger_than_its_file,
        ("bad.npz: observations: expected 18,014,398,509,481,984 bytes", "found 0"),
    ),
    "wrong keys": (npz(rewards=None, reward=np.ones(5)), ("missing: rewards; unknown: reward",)),
    "environment as a number": (npz(env_id=3), ("bad.npz: env_id: expected a string, found 3",)),
    "held out of another size": (
        wrong_held_out,
        ("bad-val.npz: expected sizes and action bounds (2, 1,", "found (3, 1,", "move it away"),
    ),
    # A folder of mapped files.
    "no .npy file": (empty_folder, ("bad: expected a folder of observations.npy", "found no .npy file")),
    "array cut short": (cut_array, ("observations.npy: expected a whole .npy file", "cannot be mapped", "numpy.save")),
    "array as text": (npy_folder(rewards=b"text"), ("rewards.npy: expected a whole .npy file",)),
    "array without bytes": (npy_folder(rewards=b""), ("rewards.npy: expected a whole .npy file",)),
    "pickled array": (npy_folder(rewards=np.array([None] * 5)), ("rewards.npy: expected a whole .npy file", "object")),
    "float64 on disk": (
        npy_folder(observations=np.ones((5, 2))),
        ("observations.npy: expected float32 in C order, found float64", "tql data convert", "in_memory: true"),
    ),
    "columns first": (
        npy_folder(observations=np.ones((5, 2), np.float32, order="F")),
        ("observations.npy: expected float32 in C order, found float32 in Fortran order",),
    ),
    "no next observations": (
        npy_folder(next_observations=None),
        ("expected next_observations.npy, found none", "tql data convert"),
    ),
    "nan on disk": (npy_folder(rewards=np.float32(NAN_AT_3)), ("bad: rewards: expected finite", "index (3,)")),
    "missing file": (npy_folder(rewards=None), ("missing: rewards; unknown: none",)),
    "unknown file": (npy_folder(reward=np.ones(5)), ("missing: none; unknown: reward",)),
    "setting as an array": (npy_folder(env_id=np.array("A-v0")), ("env_id.npy: expected env_id in metadata.json",)),
    "no JSON": (npy_folder(metadata=b"{"), ("metadata.json: expected JSON", "mend or remove it")),
    "a folder for JSON": (folder_for_metadata, ("metadata.json: expected JSON", "mend or remove it")),
    "a list": (npy_folder(metadata=b"[1]"), ("metadata.json: expected an object of env_id", "found list")),
    "unknown setting": (settings(env="A-v0"), ("metadata.json: expected an object of", "found env; remove")),
    "environment of another type": (settings(env_id=3), ("bad: env_id: expected a string, found 3",)),
    "ragged bounds": (settings(action_low=[[1], [2, 3]]), ("bad: action_low: expected an array of numbers", "pad or")),
    "ragged scores": (settings(reference_scores=[[1], 2]), ("bad: reference_scores: expected an array of numbers",)),
    "a number for yes": (settings(actions_scaled=1), ("actions_scaled: expected true or false, found 1",)),
    # D4RL.
    "no hdf5 file": (named("FOLDER/absent.hdf5"), ("absent.hdf5: no such file; check the path",)),
    "hdf5 cut short": (cut_hdf5, ("bad.hdf5: expected a whole HDF5 file", "fetch it again")),
    "no hdf5": (other_bytes(".hdf5"), ("bad.hdf5: expected a whole HDF5 file", "fetch it again")),
    "no terminals": (d4rl(terminals=None), ("bad.hdf5: expected a D4RL file", "found no terminals among actions")),
    "a group for an array": (grouped_hdf5, ("bad.hdf5: expected a D4RL file", "found no rewards among")),
    "no timeouts": (d4rl(timeouts=None), ("bad.hdf5: expected an array timeouts, found none", "max_episode_steps")),
    "nan in hdf5": (d4rl(rewards=[0, 0, np.nan, 0, 0, 0, 0]), ("bad: rewards: expected finite", "index (2,)")),
    "unequal in hdf5": (d4rl(rewards=np.ones(6)), ("bad: rewards: expected 7 transitions", "found 6")),
    "unequal terminals": (d4rl(terminals=np.zeros(6)), ("bad: terminations: expected 7 transitions", "found 6")),
    "no rows in hdf5": (d4rl(observations=np.ones((0, 2))), ("bad: observations: expected at least one transition",)),
    "strings in hdf5": (d4rl(rewards=np.array([b"a"] * 7)), ("bad: rewards: expected numbers, found dtype |S1",)),
    "a number for an array": (d4rl(terminals=np.float32(1)), ("terminals: expected shape (transitions,), found ()",)),
    "counts in hdf5": (d4rl(timeouts=np.arange(7)), ("bad: timeouts: expected 0 or 1", "found 2 at index 2")),
    "actions outside in hdf5": (
        d4rl(actions=np.linspace(-2, 2, 7)[:, None]),
        ("actions: expected values in [-1, 1], found -2 at index (0, 0) and a range of [-2, 2]",),
    ),
    # Names.
    "unknown name": (named("cartpole"), ("cartpole: expected minari:ID, an OGBench name", "; check the name")),
    "D4RL's name": (named("hopper-medium-v2"), ("hopper-medium-v2: expected", "give the path of this D4RL dataset's")),
    "no such folder": (named("FOLDER/absent"), ("absent: expected minari:ID", "found none of these")),
    "OGBench's name of no single task": (
        named("cube-single-play-v0"),
        ("; for a single task of OGBench: cube-single-play-singletask-task1-v0",),
    ),
    "unknown OGBench domain": (
        named("cube-singel-play-singletask-task1-v0"),
        ("expected a domain of OGBench, found 'cube-singel-play'; did you mean cube-single-play",),
    ),
    "unknown OGBench task": (
        named("cube-single-play-singletask-task9-v0"),
        ("data.dataset.task: expected one of 1, 2, 3, 4, 5, found 9",),
    ),
    "unknown Minari dataset": (
        named("minari:toy/absent-v0"),
        ("toy/absent-v0: not cached, and its download failed", "minari download toy/absent-v0", "cached: none"),
    ),
    "malformed Minari id": (named("minari:no version"), ("no version: not cached", "Malformed dataset ID")),
}


def test_there_are_many() -> None:
    assert len(BAD) >= 40


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_field_place_and_remedy(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write, fragments = BAD[case]
    name = write(tmp_path)
    with pytest.raises(DatasetError) as caught:
        load_dataset(name)
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert "; " in message or "? " in message or "such as" in message, f"no remedy in: {message}"
