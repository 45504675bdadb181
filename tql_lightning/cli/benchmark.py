"""``tql benchmark``: plans a suite, checks all of it, has an engine run it, and shows the table."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from filelock import FileLock, Timeout

from tql_lightning.benchmark.plan import Choice, PlannedRun, plan_runs, read_plan, refuse_own_keys, write_plan
from tql_lightning.benchmark.progress import Progress
from tql_lightning.benchmark.ray_engine import Resources, require_ray, run_with_ray
from tql_lightning.benchmark.search import parse_space, search, settings_to_check, vary
from tql_lightning.benchmark.serial import run_serially
from tql_lightning.benchmark.slurm import require_slurm, submit
from tql_lightning.benchmark.suite import Suite, SuiteError, read_suite
from tql_lightning.benchmark.summary import summary_of
from tql_lightning.benchmark.worker import POLL_SECONDS, make_job, outcome_of
from tql_lightning.cli.benchmark_checks import check_groups, parse_groups, reason
from tql_lightning.cli.configs import packaged_configs, packaged_suites
from tql_lightning.cli.parsers import Engine
from tql_lightning.data.sources.ogbench import URL_VARIABLE, dataset_address
from tql_lightning.report.table_formats import render_table, search_markdown

ENGINE_OF: dict[str, Engine] = {"search": "ray", "address": "ray", "slurm": "slurm"}  # options of one engine
MOST_GPUS = 1000  # of a run
DRIVER_LOCK = "benchmark.lock"


class BenchmarkError(ValueError):
    """A check failed, and nothing was run."""


def check_options(
    engine: Engine, cpus: float, resources: Resources, numbers: Mapping[str, tuple[int, int]], given: Collection[str]
) -> None:
    """Refuses numbers out of range, and options that would have no effect.

    Args:
        engine: What runs the benchmark.
        cpus: Cores of a run.
        resources: What Ray gives a run.
        numbers: Further options: value, and the least value.
        given: Names of the options that some engines alone have, as far as they are given.

    Raises:
        ValueError: An option cannot be.
    """
    gpus = resources.gpus
    ranges = {
        "cpus": (cpus, "a number above 0", cpus > 0),
        "gpus": (gpus, "0, a part of 1, or a whole number", 0 <= gpus <= 1 or gpus in range(1, MOST_GPUS)),
    }
    ranges |= {name: (value, f"at least {least}", value >= least) for name, (value, least) in numbers.items()}
    for name, (value, what, holds) in ranges.items():
        if not holds:
            raise ValueError(f"{name}: expected {what}, found {value}")
    for name in given:
        if engine != ENGINE_OF[name]:
            raise ValueError(f"{name}: expected only with --engine {ENGINE_OF[name]}, found {engine}; leave it out")


def key_values(settings: Sequence[str] | None, option: str) -> dict[str, str]:
    """Settings given as KEY=VALUE.

    Raises:
        SuiteError: One has no "=".
    """
    pairs = [setting.lstrip("-").partition("=") for setting in settings or ()]
    for (key, equals, _), text in zip(pairs, settings or (), strict=True):
        if not equals or not key:
            raise SuiteError(f"{option}: expected KEY=VALUE such as model.discount=0.995, found {text}")
    return {key: value for key, _, value in pairs}


def plan_suite(name: str, choice: Choice) -> tuple[Suite, list[PlannedRun]]:
    """A suite and the chosen runs of it."""
    suite = read_suite(name, packaged_suites())
    return suite, plan_runs(suite, choice, packaged_configs())


def print_plan(suite: Suite, runs: Sequence[PlannedRun], output: Path, trials: int = 1) -> None:
    """Prints what would run: runs, updates, estimated hours, and datasets that are missing.

    Args:
        suite: The suite.
        runs: The runs, of one trial where there is a search.
        output: Folder of the benchmark.
        trials: How often a search trains these runs.
    """
    from tql_lightning.cli.benchmark_measure import seconds_per_update

    groups = parse_groups(runs)
    finished = [run for run in runs if (found := outcome_of(run, output)) and found.state == "finished"]
    print(f"suite {suite.name}: {len(runs)} runs in {output} ({len(finished)} finished)")
    total, unknown = 0.0, 0
    measured: dict[str, float | None] = {}
    problems = [group.error for group in groups if group.error]
    print(f"{'domain':24}{'method':24}{'runs':>6}{'updates':>12}{'s/update':>10}{'hours':>9}")
    for group in groups:
        method = group.runs[0].method
        try:
            seconds = measured[method] = measured.get(method) or seconds_per_update(group, suite)
        except (Exception, SystemExit) as error:  # of any dataset, model or simulator
            seconds = None
            problems.append(f"{method} on {group.runs[0].domain}: {reason(error)}")
        hours = None if seconds is None else seconds * group.updates * len(group.runs) / 3600
        total += hours or 0.0
        unknown += hours is None
        shown = ("-", "-") if seconds is None or hours is None else (f"{seconds:.3g}", f"{hours:.2f}")
        print(f"{group.runs[0].domain:24}{method:24}{len(group.runs):6}{group.updates:12,}{shown[0]:>10}{shown[1]:>9}")
    updates = trials * sum(group.updates * len(group.runs) for group in groups)
    if trials > 1:
        print(f"a search trains these runs {trials} times, with other settings each; its sum:")
    more = f", and {unknown} of these lines, which cannot be measured here" if unknown else ""
    print(f"{updates:,} updates, {trials * total:.1f} hours of training one after the other on this machine{more}")
    print("(measured over a few updates on the first domain of each method; evaluations come on top)")
    for text in dict.fromkeys(text for group in groups for text in group.missing_datasets()):
        print(f"missing: {text}")
    if any(group.is_downloaded for group in groups if group.missing_datasets()):
        print(f"OGBench's are downloaded from {dataset_address()} before anything runs; {URL_VARIABLE} sets a mirror")
    for problem in problems:
        print(f"cannot run: {problem}")


def run_suite(
    suite: Suite,
    runs: Sequence[PlannedRun],
    output: Path,
    engine: Engine,
    cpus: float,
    resources: Resources,
    slurm: Mapping[str, str],
) -> int:
    """Checks and runs a plan, prints failed runs and the table; returns how many runs have not finished.

    Raises:
        BenchmarkError: A configuration, a dataset or an environment does not pass its check; nothing was run.
    """
    if engine == "ray":
        require_ray()
    elif engine == "slurm":
        require_slurm(resources.gpus)
    output.mkdir(parents=True, exist_ok=True)
    with _only_driver(output):
        write_plan(output, suite, [])
        open_runs = [run for run in runs if (found := outcome_of(run, output)) is None or found.state != "finished"]
        groups = parse_groups(open_runs)
        _refuse_problems(check_groups(groups, suite))
        planned = write_plan(output, suite, runs)
        updates = {run.folder: group.updates for group in groups for run in group.runs}
        progress = Progress(output, runs, suite.metric, updates)
        job = make_job(output, suite.metric, cpus)
        if engine == "slurm" and open_runs:
            number = submit(open_runs, job, resources.gpus, slurm)
            print(f"job {number}: {len(open_runs)} runs submitted; tql report {output} --format md shows what there is")
            return 0
        if engine == "serial":
            run_serially(open_runs, job, progress)
        elif open_runs:
            run_with_ray(open_runs, job, resources, progress)
    unfinished = tell_unfinished(runs, output)
    if unfinished < len(runs):
        print(render_table(summary_of([output]), "md"))
    print(f"{len(runs) - unfinished} of {len(runs)} runs finished ({len(planned)} in {output})")
    return unfinished


def search_suite(
    suite: Suite,
    runs: Sequence[PlannedRun],
    output: Path,
    space: Mapping[str, tuple[str, list[Any]]],
    trials: int,
    cpus: float,
    resources: Resources,
) -> int:
    """Checks the runs of a search, searches, and prints its record; returns how many trials are incomplete.

    Raises:
        SuiteError: See `search`.
        BenchmarkError: A check failed; nothing was run.
    """
    require_ray("optuna")
    output.mkdir(parents=True, exist_ok=True)
    with _only_driver(output):
        write_plan(output, suite, [])
        begin, *further = settings_to_check(space)
        groups = parse_groups([vary(run, begin) for run in runs])
        _refuse_problems(check_groups(groups, suite))
        _refuse_problems(check_groups(parse_groups([vary(runs[0], settings) for settings in further]), suite))
        updates = {group.runs[0].domain: group.updates for group in groups}
        with _progress_of_search(output, suite, updates):
            record = search(runs, suite, space, trials, make_job(output, suite.metric, cpus), resources)
        varied = [vary(run, trial["settings"]) for trial in record["trials"] for run in runs]
    tell_unfinished(varied, output)
    print(search_markdown(record))
    return sum(trial["mean"] is None for trial in record["trials"])


@contextmanager
def _progress_of_search(output: Path, suite: Suite, updates: Mapping[str, int]) -> Iterator[None]:
    """Shows the runs of the trials that have begun, while Ray Tune has this thread."""
    progress, over = Progress(output, [], suite.metric, {}), Event()

    def show() -> None:
        while not over.wait(POLL_SECONDS):
            progress.runs = read_plan(output)[1]
            progress.updates = {run.folder: updates[run.domain] for run in progress.runs if run.domain in updates}
            progress.show()

    thread = Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def search_space(runs: Sequence[PlannedRun], ranges: Sequence[str]) -> dict[str, tuple[str, list[Any]]]:
    """The ranges of a search; see `parse_space`.

    Raises:
        SuiteError: A range cannot be read, or the runs are of several methods.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    if len(methods) != 1:
        raise SuiteError(
            f"search: expected the runs of one method, found {', '.join(methods)}; add --methods and --sizes"
        )
    space = parse_space(key_values(ranges, "search"))
    refuse_own_keys(space)
    return space


@contextmanager
def _only_driver(output: Path) -> Iterator[None]:
    for path in (each for pattern in ("*", "*/*", "*/*/*", "*/*/*/*") for each in output.glob(pattern)):
        if path.is_symlink() and not path.resolve().is_relative_to(output.resolve()):
            raise BenchmarkError(f"{path}: expected a file or folder of the benchmark, found a link out; remove it")
    try:
        with FileLock(output / DRIVER_LOCK, timeout=0):
            yield
    except Timeout as error:
        raise BenchmarkError(f"output: {output} is in use by another tql benchmark; wait, or stop it") from error


def _refuse_problems(problems: Sequence[str]) -> None:
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise BenchmarkError(f"{len(problems)} checks failed, nothing was run:\n{listed}")


def tell_unfinished(runs: Sequence[PlannedRun], output: Path) -> int:
    """Prints the runs that failed, with their messages; returns how many have not finished."""
    unfinished = 0
    for run in runs:
        outcome = outcome_of(run, output)
        if outcome is None or outcome.state != "finished":
            unfinished += 1
            what = "not run" if outcome is None else f"{outcome.state}: {outcome.message}"
            print(f"{output / run.folder}: {what}", file=sys.stderr)
    return unfinished
