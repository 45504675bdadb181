"""Files of a run's or a benchmark's folder: whole ones, and ones with values of other kinds somewhere."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import strategies as st

ODD: list[Any] = [None, True, -1, 10**400, 1e400, float("nan"), "", "\x1b]0;x\x07", "x" * 20_000, "../..", "/etc"]
ODD += [[], {}, [[]], {"": ""}, [[1]] * 300, ["x"], {"a": [1]}, [None], 1.5, 10**15, "1" + ":1" * 200 + ".0"]

EVALUATION = {"update": 0, "env_id": "Pendulum-v1", "seed": 0, "episodes": 2, "returns": [0.0, 1.0], "lengths": [1, 1]}
EVALUATION |= {"successes": [True, False], "summary": {"return": 0.5}}
STARTS = [{"command": "tql fit", "update": 0, "device": "cpu", "processes": 1, "cores": 2, "threads": None}]
STARTS[0] |= {"python": "3.11", "system": "Linux", "packages": {"torch": "2"}}
BASELINES = {"dataset": -100.0, "behaviour cloning": -50.0}
CONFIG = {"seed_everything": 0, "trainer": {"default_root_dir": "run", "max_steps": 200, "log_every_n_steps": 10}}
CONFIG |= {"data": {"dataset": {"class_path": "x", "init_args": {"name": "a"}}}, "online": {"steps": 5}}
RUN = {"domain": "a", "task": "a/task_1", "method": "t", "base": "t", "size": None, "seed": 0, "folder": "run"}
SUITE = {"metric": "success_rate", "protocol": "last", "seeds": [0], "domains": {"a": {"config": "x", "tasks": [1]}}}
SUITE |= {"methods": {"t": {}}, "published": [{"method": "t", "source": "s", "scores": {"a/task_1": [50, 1], "a": 3}}]}
PLAN = {"suite": "mine", "definition": SUITE, "runs": [RUN | {"arguments": ["--config", "x"]}]}
SEARCH = {"metric": "success_rate", "protocol": "last", "space": {"model.tau": ["uniform", [0, 1]]}}
SEARCH |= {"trials": [{"settings": {"model.tau": 0.5}, "scores": [0.5], "mean": 0.5}], "curves": []}
SEARCH |= {"best": {"settings": {"model.tau": 0.5}, "scores": [0.5], "mean": 0.5, "low": None, "high": None}}
METRICS = "step,epoch,eval/success_rate,eval/return,train/td_loss,env_steps\n0,0,0.5,-100,1,0\n200,0,1,-90,0.5,5\n"


@st.composite
def _changed_values(draw: st.DrawFn, whole: Any) -> Any:
    """A copy with one to three values replaced, taken out, or put under another name."""
    root = {"root": copy.deepcopy(whole)}
    for _ in range(draw(st.integers(1, 3))):
        place: Any = root
        for _ in range(draw(st.integers(0, 5))):
            inside = list(place.values()) if isinstance(place, dict) else place
            inside = [each for each in inside if isinstance(each, dict | list) and each]
            place = draw(st.sampled_from(inside)) if inside else place
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        if place is not root and not draw(st.integers(0, 4)):
            del place[key]
        else:
            place[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        if not root["root"] or not isinstance(root["root"], dict | list):
            break
    return root["root"]


def built_json(whole: Any) -> st.SearchStrategy[bytes]:
    """JSON with values of other kinds."""
    return _changed_values(whole).map(lambda value: json.dumps(value).encode())


def built_yaml(whole: Any) -> st.SearchStrategy[bytes]:
    """YAML with values of other kinds."""
    return _changed_values(whole).map(lambda value: yaml.safe_dump(value).encode())


@st.composite
def built_metrics(draw: st.DrawFn) -> bytes:
    """Columns and cells of other kinds."""
    cells = ["", "0", "1e999", "nan", "-5", "9" * 400, "x", '"', "\x1b[2J", "1,2", "\0", "1_0", "\u0661", "1e15", "inf"]
    lines = METRICS.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        row = draw(st.integers(0, len(lines) - 1))
        values = lines[row].split(",")
        values[draw(st.integers(0, len(values) - 1))] = draw(st.sampled_from(cells))
        lines[row] = ",".join(values)
    return "\n".join(lines).encode()
