"""The summary of folders of runs: judged by the suite where they are a benchmark's, by a default elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tql_lightning.benchmark.plan import PlannedRun, read_plan
from tql_lightning.benchmark.suite import Suite
from tql_lightning.benchmark.worker import outcome_of
from tql_lightning.report.methods import choose_score, group_methods
from tql_lightning.report.protocol import LAST_THREE, Protocol
from tql_lightning.report.runs import ReportError, Run, read_runs
from tql_lightning.report.table import ALL, Entry, Summary, summarise
from tql_lightning.run.folder import BENCHMARK_FILE, METRICS_FILE, SEARCH_FILE
from tql_lightning.trust.bounded import read_json

PARTS = {"metric", "protocol", "runs", "rows", "iqm", "improvement", "published", "unfinished"}
SINGLE_TASK = re.compile(r"(?:ogbench:)?(.+)-singletask-task(\d)-v0")


def summary_of(paths: Sequence[Path], protocol: Protocol | None = None) -> Summary:
    """The summary of a benchmark's folder, of folders of other runs, or of a file that holds a summary.

    Args:
        paths: One folder of a benchmark or one .json file with a summary; or folders of runs.
        protocol: Which evaluations make a score; None for the suite's, or outside of benchmarks "last_three", or
            "last" where runs have fewer evaluations.

    Raises:
        ReportError: A path holds no run or no summary, a run's file is damaged, or no run was evaluated.
    """
    if len(paths) == 1 and paths[0].is_file():
        return read_summary(paths[0])
    if is_benchmark(paths):
        return _of_benchmark(paths[0], protocol)
    runs = read_runs(paths)
    metric = choose_score(runs)
    if metric is None:
        raise ReportError("report: expected runs with evaluations, found none; a table needs scores")
    entries = [
        _entry(run, metric, *_domain_and_task(run.task), method.label, str(run.seed))
        for method in group_methods(runs)
        for run in method.runs
    ]
    shortest = min((len(entry.evaluations) for entry in entries if not entry.unfinished), default=0)
    return summarise(entries, metric, protocol or ("last_three" if shortest >= LAST_THREE else "last"))


def is_benchmark(paths: Sequence[Path]) -> bool:
    """Whether the one path is the folder of a benchmark, whose table names the runs that have no score yet."""
    return len(paths) == 1 and (paths[0] / BENCHMARK_FILE).is_file()


def read_summary(path: Path) -> Summary:
    """A summary from a JSON file.

    Raises:
        ReportError: It is none.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ReportError(f"report {path}: expected a summary in JSON, found {error}") from error
    if not isinstance(found, dict) or not found.keys() >= PARTS:
        raise ReportError(f"report {path}: expected a summary with {', '.join(sorted(PARTS))}, found something else")
    return found


def _of_benchmark(output: Path, protocol: Protocol | None) -> Summary:
    suite, planned = read_plan(output)
    begun = [run for run in planned if (output / run.folder / METRICS_FILE).is_file()]
    found = {run.folder: run for run in read_runs([output / run.folder for run in begun])} if begun else {}
    entries = []
    for each in planned:
        run = found.get(output / each.folder)
        if run is None:
            entries.append(
                Entry(each.folder, each.domain, each.task, each.method, str(each.seed), (), 0, "not started")
            )
        else:
            own = (each.domain, each.task, each.method, str(each.seed))
            entries.append(_entry(run, suite.metric, *own, each.folder, _state(each, output)))
    published = [_published(each, suite) for each in suite.published]
    whole = {name: len(domain.tasks) for name, domain in suite.domains.items()}
    whole[ALL] = sum(max(number, 1) for number in whole.values())
    summary = summarise(entries, suite.metric, protocol or suite.protocol, published, whole)
    file = output / SEARCH_FILE
    try:
        search = {"search": read_json(file)} if file.is_file() else {}
    except ValueError as error:
        raise ReportError(f"report {file}: expected the record of a search in JSON, found {error}") from error
    return {"suite": suite.name} | summary | search


def _state(run: PlannedRun, output: Path) -> str:
    outcome = outcome_of(run, output)
    return "" if outcome is None or outcome.state == "finished" else outcome.state


def _entry(
    run: Run, metric: str, domain: str, task: str, method: str, seed: str, name: str = "", state: str = ""
) -> Entry:
    updates, values = run.series.get(f"eval/{metric}", ([], []))
    after = [value for update, value in zip(updates, values, strict=True) if update > 0]
    last = updates[-1] if updates else 0
    short = run.planned is not None and last < run.planned
    unfinished = state or (f"evaluated at {last:,} of {run.planned:,} updates" if short else "")
    return Entry(name or run.name, domain, task, method, seed, after, last, unfinished)


def _domain_and_task(task: str) -> tuple[str, str]:
    match = SINGLE_TASK.fullmatch(task)
    return (match[1], f"{match[1]}/task_{match[2]}") if match else (task, task)


def _published(figures: Mapping[str, Any], suite: Suite) -> dict[str, Any]:
    """Published figures in the metric's own unit; suites give success in per cent, as papers do."""
    unit = 100 if suite.metric == "success_rate" else 1
    pairs = {row: score if isinstance(score, list) else [score, None] for row, score in figures["scores"].items()}
    scores = {row: [None if each is None else each / unit for each in pair] for row, pair in pairs.items()}
    size = figures.get("size")
    method = f"{figures['method']}-{size}" if size else figures["method"]
    return {"method": method, "source": figures["source"], "seeds": figures.get("seeds"), "scores": scores}
