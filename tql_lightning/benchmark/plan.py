"""The plan of a benchmark: its runs, each with the command that trains it and the folder that it writes."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tql_lightning.benchmark.suite import Domain, Method, Suite, SuiteError, make_suite
from tql_lightning.run.folder import BENCHMARK_FILE
from tql_lightning.run.naming import method_name, run_folder
from tql_lightning.system.files import write_text_whole
from tql_lightning.trust.bounded import read_json
from tql_lightning.trust.text import shown

TASK_KEY = "data.dataset.task"
OWN_KEYS = {"seed_everything": "--seeds", "trainer.default_root_dir": "--output", TASK_KEY: "--tasks"}
LARGEST_SEED = 2**32 - 1  # NumPy's


@dataclass(frozen=True)
class PlannedRun:
    """One run of a benchmark.

    Attributes:
        domain: Problem, such as "cube-double".
        task: Problem with its task, such as "cube-double/task_1".
        method: Method with its size and changed settings, such as "tql-26m".
        base: Method as the suite calls it, without size and settings.
        size: Size of the critic, or None.
        seed: Seed of the run.
        folder: Folder of the run within the benchmark's.
        arguments: Arguments of ``tql fit``, without the folder.
    """

    domain: str
    task: str
    method: str
    base: str
    size: str | None
    seed: int
    folder: str
    arguments: Sequence[str]

    def command(self, output: Path) -> list[str]:
        """Arguments after ``tql`` that train the run from its start."""
        return ["fit", *self.arguments, f"--trainer.default_root_dir={output / self.folder}"]

    def line(self, output: Path) -> str:
        """The command as a line for a shell."""
        return shlex.join(["tql", *self.command(output)])


@dataclass(frozen=True)
class Choice:
    """What to run of a suite; None for all of it.

    Attributes:
        tasks: Domains, or tasks such as "cube-double/task_1".
        methods: Methods of the suite, or packaged ones ("method/NAME", "variant/NAME") by their last name.
        sizes: Sizes for the methods that have sizes.
        seeds: Seeds.
        settings: Settings of every run, by key.
    """

    tasks: Sequence[str] | None = None
    methods: Sequence[str] | None = None
    sizes: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    settings: Mapping[str, str] | None = None


def plan_runs(suite: Suite, choice: Choice, packaged: Mapping[str, Path]) -> list[PlannedRun]:
    """The runs of a suite, those of one task together.

    Raises:
        SuiteError: A chosen task, method or size is unknown, or a seed is given twice.
    """
    seeds = suite.seeds if choice.seeds is None else choice.seeds
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) > LARGEST_SEED:
        raise SuiteError(f"seeds: expected different numbers from 0 to {LARGEST_SEED}, found {list(seeds)}")
    methods = _methods(suite, choice, packaged)
    if choice.sizes and not any(method.sizes for method in methods.values()):
        raise SuiteError(f"sizes: expected none, since none of {', '.join(methods)} has sizes in suite {suite.name}")
    changed = dict(choice.settings or {})
    runs = []
    for domain, problem, number in _tasks(suite, choice):
        for base, method in methods.items():
            sizes = method.sizes and (choice.sizes or method.sizes)
            for size in sizes or (None,):
                configs = [*problem.configs, *([f"size/{size}"] if size else []), *method.configs, *suite.configs]
                _require(configs, packaged)
                settings = {**suite.settings, **problem.settings, **method.settings}
                settings |= suite.exceptional(domain, base, size) | changed
                refuse_own_keys([key for key in settings if number is not None or key != TASK_KEY])
                arguments = [part for config in configs for part in ("--config", config)]
                arguments += [f"--{key}={_text(value)}" for key, value in settings.items()]
                arguments += [] if number is None else [f"--{TASK_KEY}={number}"]
                label = method_name([base, *([size] if size else [])], changed)
                task = domain if number is None else f"{domain}/task_{number}"
                for seed in seeds:
                    folder = run_folder("", domain, None if number is None else str(number), label, str(seed))[1:]
                    own = [*arguments, f"--seed_everything={seed}"]
                    runs.append(PlannedRun(domain, task, label, base, size, seed, folder, own))
    folders = Counter(run.folder for run in runs)
    twice = [folder for folder, number in folders.items() if number > 1]
    if twice:
        raise SuiteError(
            f"suite {suite.name}: expected a folder of its own for each run, found {twice[0]} twice; give each task, "
            "method and size once"
        )
    return runs


def refuse_own_keys(keys: Iterable[str]) -> None:
    """Refuses settings that the plan makes itself for each run.

    Raises:
        SuiteError: There is one.
    """
    for key in keys:
        if key in OWN_KEYS:
            raise SuiteError(f"{key}: expected no such setting, which differs between runs; use {OWN_KEYS[key]}")


def _tasks(suite: Suite, choice: Choice) -> Iterator[tuple[str, Domain, int | None]]:
    known = [
        ({domain, *([] if number is None else [f"{domain}/task_{number}"])}, domain, problem, number)
        for domain, problem in suite.domains.items()
        for number in (problem.tasks or [None])  # type: ignore[list-item]
    ]
    names = set[str]().union(*(each for each, *_ in known))
    for task in choice.tasks or ():
        if task not in names:
            raise SuiteError(
                f"tasks: expected tasks of suite {suite.name}, found {task}; there is: {', '.join(sorted(names))}"
            )
    for own, domain, problem, number in known:
        if choice.tasks is None or own & set(choice.tasks):
            yield domain, problem, number


def _methods(suite: Suite, choice: Choice, packaged: Mapping[str, Path]) -> dict[str, Method]:
    if choice.methods is None:
        return dict(suite.methods)
    found = {}
    sizes = next((method.sizes for method in suite.methods.values() if method.sizes), [])
    for name in choice.methods:
        if name in suite.methods:
            found[name] = suite.methods[name]
        elif f"method/{name}" in packaged:
            found[name] = Method([f"method/{name}"])
        elif f"variant/{name}" in packaged:
            found[name] = Method([f"variant/{name}"], sizes)
        else:
            packaged_names = [each.partition("/")[2] for each in packaged if each.startswith(("method/", "variant/"))]
            known = sorted({*suite.methods, *(each for each in packaged_names if "/" not in each)})
            raise SuiteError(f"methods: expected a method or variant, found {name}; there is: {', '.join(known)}")
    return found


def _require(configs: Sequence[str], packaged: Mapping[str, Path]) -> None:
    for config in configs:
        if config not in packaged and not Path(config).is_file():
            close = [name for name in packaged if name.partition("/")[0] == config.partition("/")[0]]
            close = close or [name for name in packaged if "/" not in name]
            raise SuiteError(
                f"configuration {config}: no such file in {Path.cwd()}, and none is packaged; there is: "
                f"{', '.join(close)}"
            )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write_plan(output: Path, suite: Suite, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Adds runs to the plan in the benchmark's folder, and returns all of it, so that the report knows every run.

    Raises:
        SuiteError: The folder holds a benchmark of another suite.
        OSError: The file cannot be written.
    """
    known = {run.folder: run for run in read_plan(output)[1]} if (output / BENCHMARK_FILE).is_file() else {}
    if known and read_plan(output)[0].name != suite.name:
        raise SuiteError(
            f"output: {output} holds a benchmark of suite {read_plan(output)[0].name}, found {suite.name}; choose "
            "another --output"
        )
    known |= {run.folder: run for run in runs}
    content = {"suite": suite.name, "definition": suite.raw, "runs": [asdict(run) for run in known.values()]}
    write_text_whole(output / BENCHMARK_FILE, json.dumps(content, indent=1) + "\n")
    return list(known.values())


def read_plan(output: Path) -> tuple[Suite, list[PlannedRun]]:
    """The suite and the runs of a benchmark's folder.

    Raises:
        SuiteError: The file is missing or no plan.
    """
    path = output / BENCHMARK_FILE
    try:
        content = read_json(path)
        runs = [PlannedRun(**run) for run in content["runs"]]
        for run in runs:
            _check_run(output, run)
        return make_suite(str(content["suite"]), content["definition"]), runs
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SuiteError(f"{path}: expected the plan that tql benchmark wrote, found {error}") from error


def _check_run(output: Path, run: PlannedRun) -> None:
    """Refuses folders elsewhere, which a report would show, and values of other types."""
    if not all(isinstance(each, str) for each in (run.domain, run.task, run.method, run.base, run.folder)):
        raise ValueError("a run whose names are no text")
    (output / run.folder).exists()  # raises where no folder can have this name
    if not (output / run.folder).resolve().is_relative_to(output.resolve()):
        raise ValueError(f"a run outside of {output}: {shown(run.folder)}")
    if type(run.seed) is not int or not isinstance(run.arguments, list):
        raise ValueError(f"a run with another seed or other arguments: {shown(run.folder)}")
