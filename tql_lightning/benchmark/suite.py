"""Suites: which problems and methods a benchmark runs, how it judges them, and what was published.

A suite is a YAML file::

    description: One line.
    metric: success_rate            # the figure of evaluations that is compared: eval/<metric>
    protocol: last_three            # "last_three" (mean of the last three evaluations), "last" or "best"
    seeds: [0, 1, 2]
    configs: [my.yaml]              # configurations of every run, after those of problem and method
    settings: {trainer.max_steps: 20000}
    domains:
      cube-double: {config: ogbench/cube-double, tasks: [1, 2, 3, 4, 5]}
      pendulum: {config: quickstart}
    methods:                        # by the name that the table shows
      tql: {sizes: [0.4m, 26m]}     # "size/<size>"
      fql: {configs: [method/fql]}
    exceptions:                     # settings of some runs alone
      - {domain: cube-double, method: tql, size: 26m, settings: {model.optimisation.learning_rate: 4.0e-4}}
    published:                      # shown beside the results: mean or [mean, standard deviation]; success in per cent
      - {method: tql, size: 26m, source: "arXiv 2602.01439", seeds: 8, scores: {cube-double/task_1: [95, 2]}}
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

from tql_lightning.report.protocol import Protocol
from tql_lightning.trust.text import FileError
from tql_lightning.trust.yaml_text import read_yaml_file

KEYS = {
    "suite": {
        *("description", "metric", "protocol", "seeds", "configs", "settings", "domains", "methods"),
        *("exceptions", "published"),
    },
    "domain": {"config", "configs", "tasks", "settings"},
    "method": {"configs", "sizes", "settings"},
    "exception": {"domain", "method", "size", "settings"},
    "published": {"method", "size", "source", "seeds", "scores"},
}
REQUIRED = {
    "suite": {"metric", "domains", "methods"},
    "exception": {"settings"},
    "published": {"method", "source", "scores"},
}
KINDS: dict[str, tuple[type, type | None, str]] = {  # of values: type, that of a list's parts, and in words
    **dict.fromkeys(("metric", "config"), (str, None, "text")),
    **dict.fromkeys(("settings", "scores"), (dict, None, "values by name")),
    **dict.fromkeys(("configs", "sizes"), (list, str, "a list of names")),
    **dict.fromkeys(("tasks", "seeds"), (list, int, "a list of whole numbers")),
    **dict.fromkeys(("exceptions", "published"), (list, dict, "a list of settings by name")),
}


class SuiteError(FileError):
    """A suite does not exist or cannot be used; the message names file and key."""


@dataclass(frozen=True)
class Domain:
    """A problem: its configurations, and the numbers of its tasks (none where it is one task)."""

    configs: Sequence[str]
    tasks: Sequence[int] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A method: its configurations, and the sizes that it runs in (none for its own size alone)."""

    configs: Sequence[str] = ()
    sizes: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A suite; see the module for the meaning of its parts."""

    name: str
    raw: Mapping[str, Any]
    metric: str
    protocol: Protocol
    seeds: Sequence[int]
    configs: Sequence[str]
    settings: Mapping[str, Any]
    domains: Mapping[str, Domain]
    methods: Mapping[str, Method]
    exceptions: Sequence[Mapping[str, Any]] = ()
    published: Sequence[Mapping[str, Any]] = ()

    def exceptional(self, domain: str, method: str, size: str | None) -> dict[str, Any]:
        """Settings of the exceptions that hold for a run."""
        own = {"domain": domain, "method": method, "size": size}
        found: dict[str, Any] = {}
        for exception in self.exceptions:
            if all(exception[key] == value for key, value in own.items() if key in exception):
                found |= exception["settings"]
        return found


def read_suite(name: str, packaged: Mapping[str, Path]) -> Suite:
    """Reads a suite: a user's file, or a packaged suite by name.

    Args:
        name: Path of a YAML file, or a name such as "laptop".
        packaged: The packaged suites by name.

    Raises:
        SuiteError: It is neither, or the file is no suite.
    """
    path = Path(name) if Path(name).is_file() else packaged.get(name)
    if path is None:
        close = difflib.get_close_matches(name, packaged, n=2) or sorted(packaged)
        raise SuiteError(f"suite {name}: no such file, and no packaged suite; there is: {', '.join(close)}")
    try:
        raw = read_yaml_file(path)
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise SuiteError(f"suite {name}: {error}") from error
    return make_suite(path.stem, raw)


def make_suite(name: str, raw: Any) -> Suite:
    """Checks a suite's contents.

    Raises:
        SuiteError: A part is missing, unknown or of the wrong kind.
    """
    if isinstance(raw, dict):
        raw = {key: value for key, value in raw.items() if value is not None}  # keys whose parts a user took away
    _check(name, "suite", raw)
    for kind, key in (("domain", "domains"), ("method", "methods")):
        if not isinstance(raw[key], dict) or not raw[key]:
            raise SuiteError(f"suite {name}: {key}: expected one or more by name, found {raw[key]!r:.80}")
        for each, inside in raw[key].items():
            _check(f"{name}: {key}.{each}", kind, {} if inside is None else inside)
    for kind, key in (("exception", "exceptions"), ("published", "published")):
        for index, inside in enumerate(raw.get(key) or []):
            _check(f"{name}: {key}[{index}]", kind, inside)
            for row, score in inside.get("scores", {}).items():
                pair = score if isinstance(score, list) else [score, None]
                if len(pair) != 2 or not all(each is None or isinstance(each, int | float) for each in pair):
                    place = f"{key}[{index}].scores.{row}"
                    raise SuiteError(f"suite {name}: {place}: expected a mean, or a mean and its deviation")
    protocol = raw.get("protocol", "last_three")
    if protocol not in get_args(Protocol):
        raise SuiteError(f"suite {name}: protocol: expected {', '.join(get_args(Protocol))}, found {protocol!r:.40}")
    for index, exception in enumerate(raw.get("exceptions") or []):
        for key, known in (("domain", raw["domains"]), ("method", raw["methods"])):
            if key in exception and exception[key] not in list(known):
                raise SuiteError(
                    f"suite {name}: exceptions[{index}].{key}: expected one of {', '.join(map(str, known))}, found "
                    f"{exception[key]!r:.80}"
                )
    domains = {
        each: Domain(
            [*([inside["config"]] if "config" in inside else []), *inside.get("configs", [])],
            inside.get("tasks", []),
            inside.get("settings", {}),
        )
        for each, inside in ((each, inside or {}) for each, inside in raw["domains"].items())
    }
    methods = {each: Method(**(inside or {})) for each, inside in raw["methods"].items()}
    return Suite(
        name,
        raw,
        str(raw["metric"]),
        protocol,
        raw.get("seeds", [0, 1, 2]),
        raw.get("configs") or [],
        raw.get("settings") or {},
        domains,
        methods,
        raw.get("exceptions") or [],
        raw.get("published") or [],
    )


def _check(place: str, kind: str, raw: Any) -> None:
    if not isinstance(raw, dict):
        raise SuiteError(f"suite {place}: expected settings by name, found {raw!r:.80}")
    _refuse(place, "unknown", raw.keys() - KEYS[kind], KEYS[kind])
    _refuse(place, "missing", REQUIRED.get(kind, set()) - raw.keys(), KEYS[kind])
    for key in sorted(raw.keys() & KINDS.keys() - ({"seeds"} if kind == "published" else set())):
        wanted, of, what = KINDS[key]
        value = raw[key]
        if type(value) is not wanted or (isinstance(value, list) and any(type(each) is not of for each in value)):
            raise SuiteError(f"suite {place}: {key}: expected {what}, found {value!r:.80}")


def _refuse(place: str, what: str, keys: Collection[str], known: Collection[str]) -> None:
    if keys:
        raise SuiteError(
            f"suite {place}: {what} {', '.join(sorted(map(str, keys)))}; known are {', '.join(sorted(known))}"
        )
