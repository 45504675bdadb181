"""Hostile inputs at doors that are opened less often: Minari, suites, benchmarks, --weights, certify, replay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.attack.refusing import Attack, assert_harmless
from tests.attack.test_hostile_files import checkpoint, content
from tests.attack.test_hostile_runs import begun, benchmark, finished, holds, hole, pipe
from tests.benchmark.tiny import write_suite
from tests.data.formats import record, write_minari
from tests.forging import NESTED, RUNS_A_COMMAND
from tests.fuzz.run_files import PLAN, RUN
from tests.report.runs import make_run
from tests.trust.test_plain_output import CHECKPOINTS, HOSTILE
from tests.trust.test_torch_file import ARCHIVES, PICKLES, archive
from tests.trust.test_unchecked_settings import OLD_KEYS

pytestmark = pytest.mark.slow

DATA = "--data.dataset=tests.toy.toy_dataset"
FIT = ("fit", "--config", "tiny.yaml", DATA)
CONTINUE = (*FIT, "--ckpt_path=last", "--force=true")
ONLINE = (*CONTINUE, "--online.steps=40", "--online.num_envs=2", "--data.dataset.env_id=tests.environments:Swing-v0")
WEIGHTS, EXPORT = (*FIT, "--weights=forged.ckpt"), ("export", "forged.ckpt")
MINARI, NPZ = ("data", "inspect", "minari:toy/set-v0"), ("data", "inspect", "forged.npz")
CONVERT = ("data", "convert", "forged", "converted.npz")
REPORT, TABLE = ("report", "run"), ("report", "run", "--format=md")
SUMMARY = ("report", "forged.json", "--format=md")
BENCHMARK = ("benchmark", "suite.yaml", "--output=out", "--engine=serial", "--methods=tql", "--seeds=0")
CLONING = ("evaluate", "run/checkpoints/last.ckpt", "--episodes=1", "--extraction=behaviour_flow")
CERTIFY = ("certify", "run", "--states=2", "--samples=1200", "--certificate_samples=4000")
NAME = HOSTILE[:-1].replace("/", "")  # without the zero byte, which no name holds
NUMBER = "9" * 240

Write = Callable[[Path, Path], object]
Place = Callable[[Path], object]


def minari(change: Callable[[dict[str, Any], Path], object]) -> Write:
    """A small dataset of Minari whose metadata, or files, are changed."""

    def write(folder: Path, _: Path) -> None:
        env = gymnasium.make("Pendulum-v1")
        write_minari("toy/set-v0", env, record(env, 2, 5))
        data = folder / "toy" / "set-v0" / "data"
        metadata = json.loads((data / "metadata.json").read_text())
        change(metadata, data)
        (data / "metadata.json").write_text(json.dumps(metadata))

    return write


def told(**changes: Any) -> Write:
    return minari(lambda metadata, _: metadata.update(changes))


def space(name: str, **changes: Any) -> Write:
    return minari(lambda metadata, _: metadata.update({name: json.dumps(json.loads(metadata[name]) | changes)}))


def npz(**changes: Any) -> Write:
    def write(folder: Path, _: Path) -> None:
        rng = np.random.default_rng(0)
        values = {"observations": rng.normal(size=(5, 3)), "actions": rng.uniform(-0.5, 0.5, (5, 1))}
        values |= {"rewards": np.zeros(5), "terminations": np.array([0, 0, 0, 0, 1], bool)}
        values |= {"truncations": np.zeros(5, bool), "next_observations": rng.normal(size=(5, 3))}
        np.savez(folder / "forged.npz", **(values | changes))

    return write


def mapped(name: str, make: Place) -> Write:
    """A folder of mapped arrays of which a file is another."""

    def write(folder: Path, whole: Path) -> None:
        npz()(folder, whole)
        (folder / "forged").mkdir()
        with np.load(folder / "forged.npz") as arrays:
            for each in arrays.files:
                np.save(folder / "forged" / f"{each}.npy", arrays[each])
        (folder / "forged" / name).unlink(missing_ok=True)
        make(folder / "forged" / name)

    return write


def claims(shape: tuple[int, ...], dtype: str = "<f4") -> Place:
    """An .npy file of sixteen bytes that says something else."""

    def make(path: Path) -> None:
        header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).ljust(117).encode() + b"\n"
        path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(16))

    return make


def at(name: str, make: Place) -> Write:
    return lambda folder, _: make(folder / name)


def into(name: str, make: Place) -> Write:
    """A suite, and a stranger's folder in the place of its output."""

    def write(folder: Path, _: Path) -> None:
        write_suite(folder)
        (folder / "out" / name).parent.mkdir(parents=True)
        make(folder / "out" / name)

    return write


def link(path: Path) -> None:
    path.symlink_to(next(each for each in path.parents if each.name == "work").parent / "precious.txt")


def elsewhere(path: Path) -> None:
    folder = next(each for each in path.parents if each.name == "work").parent / "elsewhere"
    folder.mkdir()
    path.symlink_to(folder)


def cloning(make: Place) -> Write:
    """A finished run with a checkpoint, whose baselines are another file."""

    def write(folder: Path, whole: Path) -> None:
        make_run(folder / "run")
        (folder / "run" / "checkpoints").mkdir()
        shutil.copy(whole, folder / "run" / "checkpoints" / "last.ckpt")
        make(folder / "run" / "baselines.json")

    return write


def beside_a_loader(folder: Path, whole: Path) -> None:
    (folder / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(whole, folder / "run" / "checkpoints" / "last.ckpt")
    (folder / "run" / "config.yaml").write_text("data: {dataset: {class_path: strangers_part.fly}}\n")


def parts(kind: str, count: int) -> Any:
    part = {"type": "Box", "dtype": "float64", "shape": [1 << 23]}
    return [part] * count if kind == "Tuple" else {str(number): part for number in range(count)}


OTHERS: dict[str, Write] = {
    "an old key": checkpoint(OLD_KEYS["module_arguments"]),
    "four gigabytes": content(archive(b"\x80\2" + PICKLES["four gigabytes by their number"][0])),
    "tuples whose hash never ends": content(archive(b"\x80\2" + PICKLES["tuples whose hash never ends"][0])),
    "another archive": content((lambda whole, change: change(whole))(*ARCHIVES["another archive before it"][:2])),
    "a terminal": checkpoint(CHECKPOINTS["setting"]),
    "updates without end": checkpoint(lambda raw: raw.update(global_step=float("inf"))),
    "a pipe": at("forged.ckpt", pipe),
    "a hole": at("forged.ckpt", hole),
}

ATTACKS: dict[str, Attack] = {
    **{
        f"Minari: {name}": (write, MINARI)
        for name, write in {
            "numbers of a gigabyte each": space("observation_space", dtype="S1000000000"),
            "text without end": space("observation_space", dtype="U100000000"),
            "objects": space("observation_space", dtype="object"),
            "many sizes": space("observation_space", shape=[1] * 60_000),
            "sizes below nothing": space("observation_space", shape=[-1, -(10**9)]),
            "sizes of hundreds of digits": space("observation_space", shape=[10**400] * 30),
            "many parts": space("observation_space", type="Dict", subspaces=parts("Dict", 9)),
            "a tuple of parts": space("observation_space", type="Tuple", subspaces=parts("Tuple", 9)),
            "a discrete space of 400 digits": space("action_space", type="Discrete", n=10**400, start=0),
            "another kind of space": space("action_space", type=HOSTILE),
            "many truths": space("observation_space", type="MultiBinary", n=[10**10]),
            "letters": space("observation_space", type="Text", max_length=10**12, min_length=1, charset="a"),
            "deep spaces": told(observation_space=NESTED),
            "Arrow, whose columns may repeat": told(data_format="arrow"),
            "a format of a terminal": told(data_format=HOSTILE),
            "400 million episodes": told(total_episodes=4 * 10**8),
            "episodes below nothing": told(total_episodes=-1),
            "episodes of text": told(total_episodes=HOSTILE),
            "a pipe": minari(lambda _, data: (data / "main_data.hdf5").unlink() or pipe(data / "main_data.hdf5")),
        }.items()
    },
    "names of a terminal": (npz(**{f"x{NAME}": np.zeros(5)}), NPZ),
    "bounds of megabytes": (npz(action_low=np.zeros(10**6), action_high=np.ones(10**6)), NPZ),
    "one axis too many": (npz(observations=np.zeros((5,) + (1,) * 30)), NPZ),
    "dates as rewards": (npz(rewards=np.zeros(5, "M8[s]")), NPZ),
    "records": (npz(rewards=np.zeros(5, [("a", "f4"), ("b", "f4")])), NPZ),
    "mapped: a pipe": (mapped("more.npy", pipe), CONVERT),
    "mapped: a hole": (mapped("rewards.npy", hole), CONVERT),
    "mapped: a link": (mapped("more.npy", link), CONVERT),
    "mapped: objects": (mapped("rewards.npy", claims((5,), "|O")), CONVERT),
    "mapped: a terminal": (mapped("metadata.json", holds(json.dumps({HOSTILE: 1}))), CONVERT),
    "a summary that is deep": (at("forged.json", holds(NESTED)), SUMMARY),
    "a summary that is a pipe": (at("forged.json", pipe), SUMMARY),
    "a summary that is a hole": (at("forged.json", hole), SUMMARY),
    "a suite that is a pipe": (at("suite.yaml", pipe), BENCHMARK),
    "a suite that is a hole": (at("suite.yaml", hole), BENCHMARK),
    "a suite that is deep": (at("suite.yaml", holds(NESTED)), BENCHMARK),
    "a suite within itself": (at("suite.yaml", holds("&a [*a]")), BENCHMARK),
    "a suite of a terminal": (at("suite.yaml", holds(json.dumps({"metric": "return", HOSTILE: 1}))), BENCHMARK),
    "a configuration that is a hole": (at("x.yaml", hole), ("fit", "--config", "x.yaml")),
    **{f"a link in the output: {name}": (into(name, link), BENCHMARK) for name in ("benchmark.lock", "benchmark.json")},
    **{
        f"an output elsewhere: {name}": (into(name, elsewhere), BENCHMARK)
        for name in ("toy", "toy/tql", "toy/tql/seed_0")
    },
    "an output of another's plan": (into("benchmark.json", holds(NESTED)), BENCHMARK),
    "a plan of long names": (
        benchmark("benchmark.json", PLAN | {"runs": [RUN | {"folder": "x" * 300, "arguments": []}]}),
        TABLE,
    ),
    **{f"--weights: {name}": (write, WEIGHTS) for name, write in OTHERS.items()},
    **{f"export: {name}": (write, EXPORT) for name, write in OTHERS.items()},
    **{
        f"replay: {name}": (begun("replay/observations.npy", make), ONLINE)
        for name, make in {
            "a pipe": pipe,
            "a hole": hole,
            "more than it holds": claims((2**40, 3)),
            "objects": claims((2,), "|O"),
            "other numbers": claims((2,), "<f8"),
            "no bytes each": claims((2**40,), "|S0"),
            "text": holds(HOSTILE),
        }.items()
    },
    "a folder of a terminal": (lambda folder, _: make_run(folder / "run" / NAME), TABLE),
    "a replay elsewhere": (begun("replay", elsewhere), ONLINE),
    "evaluations elsewhere": (begun("evaluations", elsewhere), CONTINUE),
    "events elsewhere": (begun("tensorboard", elsewhere), CONTINUE),
}

HARMLESS: dict[str, Attack] = {
    "Minari: an environment that runs": (told(env_spec=RUNS_A_COMMAND), MINARI),
    "Minari: an evaluation that runs": (told(eval_env_spec=RUNS_A_COMMAND), MINARI),
    "an environment of a terminal": (npz(env_id=f"{NAME}-v0"), NPZ),
    "an outcome of another kind": (benchmark("run/outcome.json", NESTED), TABLE),
    "events of another kind of digits": (begun("tensorboard/events.out.tfevents.²².x", holds("x")), CONTINUE),
    "an evaluation of an update without end": (finished(f"evaluations/update_{NUMBER}.json", holds("{}")), REPORT),
    "a picture of an update without end": (finished(f"pictures/attention_map/update_{NUMBER}.png", holds("")), REPORT),
    "baselines that are a pipe": (cloning(pipe), CLONING),
    "baselines that are a link": (cloning(link), CLONING),
    "an output whose plan is a pipe": (into("benchmark.json", pipe), BENCHMARK),
    "a loader beside a checkpoint": (beside_a_loader, CERTIFY),
}


@pytest.mark.parametrize("name", [*ATTACKS, *HARMLESS])
def test_a_strangers_input_runs_nothing_takes_little_and_is_answered_shortly(
    name: str, whole: Path, whole_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    write, command = (ATTACKS | HARMLESS)[name]
    write(folder, whole_run if command[:4] == FIT and command is not WEIGHTS else whole)
    within = {BENCHMARK: ("out/",), CONTINUE: ("run/",), ONLINE: ("run/",), WEIGHTS: ("run/",), CLONING: ("run/",)}
    assert_harmless(folder, command, 2 if name in ATTACKS else 0, within.get(command, ("report.html",)))
