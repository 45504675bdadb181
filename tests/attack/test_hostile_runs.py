"""Hostile folders of runs and benchmarks: what a report shows of them, and what a run that continues in them does."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.attack.refusing import Attack, assert_harmless
from tests.command_line import TINY
from tests.forging import NESTED
from tests.fuzz.run_files import EVALUATION, PLAN, RUN, SEARCH
from tests.report.runs import make_run
from tests.trust.test_out_of_range import STATES
from tests.trust.test_plain_output import HOSTILE
from tests.trust.test_torch_file import number, tensor, text

pytestmark = pytest.mark.slow

HOLE = 6 << 30  # bytes
DATA = "--data.dataset=tests.toy.toy_dataset"
FIT = ("fit", "--config", "tiny.yaml", DATA)
CONTINUE = (*FIT, "--ckpt_path=last", "--force=true")
REPORT, TABLE, SUMMARY = ("report", "run"), ("report", "run", "--format=md"), ("report", "forged.json", "--format=md")
WEIGHTS = (*FIT, "--weights=run", "--trainer.default_root_dir=new")
EVALUATE = ("evaluate", "forged.ckpt", "--episodes=1")

Place = Callable[[Path], object]
Change = Callable[[dict[str, Any]], object]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def hole(path: Path) -> None:
    path.touch()
    os.truncate(path, HOLE)


def hole_after_text(path: Path) -> None:
    path.write_text("step,a\n0,1\n")
    os.truncate(path, HOLE)


def holds(content: str) -> Place:
    return lambda path: path.write_text(content)


def finished(name: str, make: Place, pictures: bool = False) -> Callable[[Path, Path], object]:
    """A finished run in which a file is another."""

    def write(folder: Path, _: Path) -> None:
        path = make_run(folder / "run", pictures=pictures) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)

    return write


def begun(name: str, make: Place) -> Callable[[Path, Path], object]:
    """A run that can be continued, in which a file is another."""

    def write(folder: Path, whole: Path) -> None:
        path = folder / "run" / name
        (folder / "run" / "checkpoints").mkdir(parents=True)
        shutil.copy(whole, folder / "run" / "checkpoints" / "last.ckpt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)

    return write


def continued(change: Change) -> Callable[[Path, Path], object]:
    """A run that can be continued, from a checkpoint that is changed."""

    def write(folder: Path, whole: Path) -> None:
        (folder / "run" / "checkpoints").mkdir(parents=True)
        raw = torch.load(whole, weights_only=True)
        change(raw)
        torch.save(raw, folder / "run" / "checkpoints" / "last.ckpt")

    return write


def moments(**changes: Any) -> Change:
    """Another state of every parameter in the optimizer; a function makes it of the parameter's."""

    def change(raw: dict[str, Any]) -> None:
        for state in raw["optimizer_states"][0]["state"].values():
            state.update({name: value(state["exp_avg"]) for name, value in changes.items()})

    return change


def benchmark(name: str, content: object) -> Callable[[Path, Path], object]:
    """A benchmark of one run, in which a file is another; a run that it must not show lies beside it."""

    def write(folder: Path, _: Path) -> None:
        make_run(folder / "run" / "run")
        make_run(folder / "secret")
        (folder / "run" / "benchmark.json").write_text(json.dumps(PLAN))
        (folder / "run" / name).write_text(content if isinstance(content, str) else json.dumps(content))

    return write


def link_to_run(folder: Path, _: Path) -> None:
    make_run(folder.parent / "secret")
    (folder / "run").mkdir()
    (folder / "run" / "seed_0").symlink_to(folder.parent / "secret")


def links_in_circles(folder: Path, _: Path) -> None:
    (folder / "run").mkdir()
    for index in range(30):
        (folder / "run" / f"{index}").symlink_to(".")


def linked_checkpoints(folder: Path, whole: Path) -> None:
    (folder / "run").mkdir()
    (folder.parent / "elsewhere").mkdir()
    shutil.copy(whole, folder.parent / "elsewhere" / "last.ckpt")
    (folder / "run" / "checkpoints").symlink_to(folder.parent / "elsewhere")


def of_settings(**changes: Any) -> Callable[[Path, Path], object]:
    def write(folder: Path, whole: Path) -> None:
        raw = torch.load(whole, weights_only=True)
        raw["hyper_parameters"].update(changes)
        torch.save(raw, folder / "forged.ckpt")

    return write


def samples_without_end(folder: Path, whole: Path) -> None:
    raw = torch.load(whole, weights_only=True)
    raw["hyper_parameters"]["extraction"] = "best_of_n"
    raw["hyper_parameters"]["policy"]["init_args"].update(num_samples=10**8, flow_steps=10**8)
    torch.save(raw, folder / "forged.ckpt")


def storage_of_a_hole(folder: Path, _: Path) -> None:
    """An archive in zip64, with the right CRC-32, of a storage of gigabytes that take no room on the disk."""
    weight = tensor("0", HOLE // 4, number(HOLE // 4) + b"\x85", b"K\1\x85")
    pickled = b"\x80\2}(" + text("state_dict") + b"}" + text("w") + weight + b"s" + text("global_step") + b"K\1u."
    crc = 0
    for _ in range(HOLE >> 24):
        crc = zlib.crc32(bytes(1 << 24), crc)
    directory = b""
    with (folder / "forged.ckpt").open("wb") as file:
        for name, size, check in (
            (b"archive/data.pkl", len(pickled), zlib.crc32(pickled)),
            (b"archive/data/0", HOLE, crc),
        ):
            place, narrow = file.tell(), 0xFFFFFFFF
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, check, narrow, narrow, len(name), 20) + name)
            file.write(struct.pack("<2H2Q", 1, 16, size, size))
            file.write(pickled) if name.endswith(b"pkl") else file.seek(size, 1)
            entry = struct.pack(
                "<6H3L5H2L", 45, 45, 0, 0, 0, 0, check, narrow, narrow, len(name), 28, 0, 0, 0, 0, narrow
            )
            directory += b"PK\1\2" + entry + name + struct.pack("<2H3Q", 1, 24, size, size, place)
        start = file.tell()
        file.write(directory + struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(directory), start))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, len(directory), narrow, 0))


EVALUATED, PICTURE = "evaluations/update_000000000.json", "pictures/attention_map/update_000000000.png"
BASE_60 = "x: 1" + ":1" * 400_000
WIDE = f"step,{','.join(f'c{index}' for index in range(50_000))}\n"
ODD_SUMMARY = {name: [1] for name in ("runs", "rows", "iqm", "improvement", "published", "unfinished")}

ATTACKS: dict[str, Attack] = {
    **{
        f"a pipe to report: {name}": (finished(name, pipe, True), REPORT)
        for name in ("config.yaml", EVALUATED, PICTURE)
    },
    "a pipe in place of the metrics to report": (finished("metrics.csv", pipe), REPORT),
    **{
        f"a pipe to continue: {name}": (begun(name, pipe), CONTINUE)
        for name in ("metrics.csv", "baselines.json", "replay/rewards.npy", "evaluations/pending/update_000000003.ckpt")
    },
    "a pipe as checkpoint": (lambda folder, _: os.mkfifo(folder / "forged.ckpt"), EVALUATE),
    **{
        f"a hole to report: {name}": (finished(name, hole), REPORT)
        for name in ("metrics.csv", EVALUATED, "config.yaml")
    },
    "a hole after metrics": (finished("metrics.csv", hole_after_text), REPORT),
    "a hole after metrics to continue": (begun("metrics.csv", hole_after_text), CONTINUE),
    "a checkpoint of a hole": (storage_of_a_hole, EVALUATE),
    "a link to a run": (link_to_run, REPORT),
    "links in circles": (links_in_circles, REPORT),
    "linked checkpoints to continue": (linked_checkpoints, CONTINUE),
    "linked checkpoints to start from": (linked_checkpoints, WEIGHTS),
    "metrics of 50,000 columns": (finished("metrics.csv", holds(WIDE)), REPORT),
    "a number of base 60 without end": (finished("config.yaml", holds(BASE_60)), REPORT),
    "a fraction of base 60": (finished("config.yaml", holds("x: 1" + ":1" * 400 + ".0")), REPORT),
    "a truth that is none": (finished("config.yaml", holds("x: !!bool y")), REPORT),
    "a Python object": (finished("config.yaml", holds("x: !!python/object/apply:strangers_part.fly []")), REPORT),
    "a configuration of megabytes": (finished("config.yaml", holds("x: " + "a" * (8 << 20))), REPORT),
    "an environment's name of megabytes": (
        finished(EVALUATED, holds(json.dumps(EVALUATION | {"env_id": "x" * 10**6}))),
        TABLE,
    ),
    "an environment's name that is a list": (
        finished(EVALUATED, holds(json.dumps(EVALUATION | {"env_id": [1]}))),
        TABLE,
    ),
    "a plan that is deep": (benchmark("benchmark.json", NESTED), TABLE),
    "a plan with a run elsewhere": (
        benchmark("benchmark.json", PLAN | {"runs": [RUN | {"folder": "../secret", "arguments": []}]}),
        REPORT,
    ),
    "a plan of another kind": (benchmark("benchmark.json", PLAN | {"definition": [HOSTILE]}), TABLE),
    "a search that is deep": (benchmark("search.json", NESTED), TABLE),
    "a search of another kind": (benchmark("search.json", SEARCH | {"trials": [HOSTILE]}), TABLE),
    "a summary of another kind": (
        lambda folder, _: (folder / "forged.json").write_text(
            json.dumps(ODD_SUMMARY | {"metric": HOSTILE, "protocol": "last"})
        ),
        SUMMARY,
    ),
    "smaller moments": (continued(moments(exp_avg=lambda _: torch.zeros(1))), CONTINUE),
    "moments of one number": (continued(moments(exp_avg_sq=lambda each: torch.zeros(1).expand(each.shape))), CONTINUE),
    "moments of text": (continued(moments(exp_avg=lambda _: HOSTILE)), CONTINUE),
    "steps of many numbers": (continued(moments(step=lambda _: torch.zeros(9))), CONTINUE),
    "smaller moments to start from": (
        continued(moments(exp_avg=lambda _: torch.zeros(1))),
        (*WEIGHTS, "--weights_optimizer=true"),
    ),
    "a state of data loaders": (
        continued(lambda raw: raw["loops"]["fit_loop"]["state_dict"].update(combined_loader=[{"x": 1}])),
        CONTINUE,
    ),
    **{name: (continued(STATES[name]), CONTINUE) for name in STATES if "checkpoint" in name},
    "settings of base 60": (of_settings(tau="1" + ":1" * 400 + ".0"), EVALUATE),
    "settings of 900 digits": (of_settings(tau="9" * 900), EVALUATE),
    "samples without end": (samples_without_end, EVALUATE),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_folder_runs_nothing_takes_little_and_is_answered_shortly(
    name: str, whole: Path, whole_run: Path, folder: Path
) -> None:
    write, command = ATTACKS[name]
    write(folder, whole if command is EVALUATE else whole_run)
    # A run writes how it was started before Lightning restores the optimizer.
    within = {CONTINUE: ("run/",), WEIGHTS: ("new/",)}.get(command, ())
    assert_harmless(folder, command, code=2, within=within)


def test_a_run_writes_through_no_hard_link(whole_run: Path, folder: Path) -> None:
    other = folder.parent / "other.csv"
    other.write_text("step,a\n1,2\n")
    begun("metrics.csv", lambda path: os.link(other, path))(folder, whole_run)
    assert_harmless(folder, CONTINUE, code=0, within=("run",))
    assert other.read_text() == "step,a\n1,2\n"


def test_a_snapshot_that_waits_in_a_strangers_run_imports_nothing(whole_run: Path, folder: Path) -> None:
    pending = "evaluations/pending/update_000000008.ckpt"
    raw = torch.load(whole_run, weights_only=True)
    raw["hyper_parameters"]["critic"]["init_args"]["norm"] = {"class_path": "strangers_part.fly"}
    begun(pending, lambda path: torch.save(raw, path))(folder, whole_run)
    callback = "  callbacks:\n    - class_path: tql_lightning.callbacks.rollout_evaluation.RolloutEvaluation\n"
    callback += '      init_args: {episodes: 1, every_n_updates: 100, env_id: "tests.environments:Swing-v0", '
    (folder / "tiny.yaml").write_text(TINY.replace("  callbacks:\n", callback + "background: true}\n"))
    ran = assert_harmless(folder, CONTINUE, code=0, within=("run",))
    assert "strangers_part.fly is not there, or in a module that a file may not import" in " ".join(ran.output.split())


@pytest.mark.parametrize("content", ['{"dataset": 1e999, "behaviour cloning": ' + "9" * 400 + "}", NESTED, "[1]"])
def test_baselines_of_another_kind_are_left_out(content: str, folder: Path) -> None:
    finished("baselines.json", holds(content))(folder, folder)
    assert_harmless(folder, REPORT, code=0, within=("report.html",))
