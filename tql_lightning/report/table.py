"""The table of a benchmark: scores of runs by task, domain and method, as plain data that JSON holds.

A summary has these parts; a score is in the metric's own unit (success from 0 to 1):

===========  =============================================================================================
metric       figure of evaluations that is compared
protocol     which evaluations make a run's score (`report.protocol`)
runs         ``task``, ``method``, ``seed``, ``updates``, and the scores ``last_three``, ``last`` and ``best``
rows         ``row`` (a task, a domain, or "all"), ``kind``, ``method``, ``mean``, ``sd``, ``low``, ``high``,
             ``seeds``, ``updates``
iqm          interquartile mean over all tasks by ``method``: ``value``, ``low``, ``high``, ``runs``
improvement  probability that ``method`` beats ``other``: ``value``, ``low``, ``high``, ``tasks``
published    ``method``, ``source``, ``seeds``, and ``scores`` by row: mean, standard deviation or null
unfinished   ``run``, ``state``: runs that no score includes
===========  =============================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, get_args

import numpy as np

from tql_lightning.report.protocol import Protocol, score_of
from tql_lightning.report.statistics import (
    Estimate,
    interquartile_mean,
    mean_over_tasks,
    probability_of_improvement,
)

ALL = "all"
Summary = dict[str, Any]
Scores = dict[str, dict[str, float]]  # task -> seed -> score


@dataclass(frozen=True)
class Entry:
    """A run for the table.

    Attributes:
        name: Name of the run.
        domain: Problem, such as "cube-double".
        task: Problem and task, such as "cube-double/task_1".
        method: Method, with size and settings where they vary.
        seed: Seed, as text.
        evaluations: Figure of each evaluation after an update, in order.
        updates: Updates of the last evaluation.
        unfinished: Why the run counts in no score; "" where it counts.
    """

    name: str
    domain: str
    task: str
    method: str
    seed: str
    evaluations: Sequence[float]
    updates: int
    unfinished: str = ""


def summarise(
    entries: Sequence[Entry],
    metric: str,
    protocol: Protocol,
    published: Iterable[Mapping[str, Any]] = (),
    whole: Mapping[str, int] | None = None,
) -> Summary:
    """The summary of runs; see the module for its parts.

    Args:
        entries: The runs.
        metric: Name of the compared figure.
        protocol: Which evaluations make a run's score.
        published: Figures of papers, with ``method``, ``source``, ``seeds`` and ``scores`` by row.
        whole: Number of tasks of each domain and of "all". A row of fewer tasks says so in its name, so that it does
            not stand beside a published mean of all of them.
    """
    counted = [entry for entry in entries if not entry.unfinished and score_of(entry.evaluations, protocol) is not None]
    methods = list(dict.fromkeys(entry.method for entry in counted))
    scores = {method: _scores(counted, method, protocol) for method in methods}
    lines = _lines(counted, whole or {})
    return {
        "metric": metric,
        "protocol": protocol,
        "runs": [
            {"task": entry.task, "method": entry.method, "seed": entry.seed, "updates": entry.updates}
            | {name: score_of(entry.evaluations, name) for name in get_args(Protocol)}
            for entry in counted
        ],
        "rows": [
            row
            for name, (kind, tasks) in lines.items()
            for method in methods
            if (row := _row(name, kind, tasks, method, scores[method], counted)) is not None
        ],
        "iqm": [
            {"method": method, "runs": sum(map(len, inside.values()))} | _interval(interquartile_mean, [inside])
            for method, inside in scores.items()
        ],
        "improvement": [pair for pair in combinations_of(methods, scores) if pair is not None],
        "published": [dict(each) for each in published],
        "unfinished": [
            {"run": entry.name, "state": entry.unfinished or f"too few evaluations for {protocol}"}
            for entry in entries
            if entry not in counted
        ],
    }


def _lines(entries: Sequence[Entry], whole: Mapping[str, int]) -> dict[str, tuple[str, list[str]]]:
    """Rows of the table: each task, each domain of several tasks, and all tasks; with kind and tasks."""
    lines: dict[str, tuple[str, list[str]]] = {}
    domains = list(dict.fromkeys(entry.domain for entry in entries))
    for domain in domains:
        tasks = sorted({entry.task for entry in entries if entry.domain == domain})
        lines |= {task: ("task", [task]) for task in tasks}
        if len(tasks) > 1:
            lines[domain] = ("domain", tasks)
    every = sorted({entry.task for entry in entries})
    if len(domains) > 1:
        lines[ALL] = ("all", every)
    parts = {
        name: f"{name} ({len(tasks)} of {whole[name]} tasks)"
        for name, (_, tasks) in lines.items()
        if len(tasks) < whole.get(name, 0)
    }
    return {parts.get(name, name): line for name, line in lines.items()}


def _scores(entries: Sequence[Entry], method: str, protocol: Protocol) -> Scores:
    found: Scores = {}
    for entry in entries:
        if entry.method == method:
            score = score_of(entry.evaluations, protocol)
            assert score is not None
            inside = found.setdefault(entry.task, {})
            inside[entry.name if entry.seed in inside else entry.seed] = score  # two runs of one seed, or without
    return found


def _row(
    name: str, kind: str, tasks: Sequence[str], method: str, scores: Scores, entries: Sequence[Entry]
) -> dict[str, Any] | None:
    """A method's figures in a row; None where a task of the row has no run, so that means are over the same tasks."""
    if any(task not in scores for task in tasks):
        return None
    by_task = {task: scores[task] for task in tasks}
    seeds = set.intersection(*(set(inside) for inside in by_task.values()))
    of_seeds = [np.mean([inside[seed] for inside in by_task.values()]) for seed in sorted(seeds)]
    deviation = float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else None
    interval = _interval(mean_over_tasks, [by_task])
    updates = [entry.updates for entry in entries if entry.method == method and entry.task in by_task]
    return {
        "row": name,
        "kind": kind,
        "method": method,
        "mean": interval["value"],
        "sd": deviation,
        "low": interval["low"],
        "high": interval["high"],
        "seeds": min(len(inside) for inside in by_task.values()),
        "updates": max(updates) if min(updates) == max(updates) else [min(updates), max(updates)],
    }


def combinations_of(methods: Sequence[str], scores: Mapping[str, Scores]) -> Iterable[dict[str, Any] | None]:
    """Compares every two methods on the tasks of both; None where there is none, or one run of each alone."""
    for method, other in combinations(methods, 2):
        tasks = [task for task in scores[method] if task in scores[other]]
        if not tasks:
            yield None
            continue
        own, others = ({task: scores[each][task] for task in tasks} for each in (method, other))
        if sum(len(inside) for each in (own, others) for inside in each.values()) == 2:
            yield None
            continue
        interval = _interval(probability_of_improvement, [own, others])
        yield {"method": method, "other": other, "tasks": len(tasks)} | interval


def _interval(statistic: Any, by_method: Sequence[Scores]) -> dict[str, float | None]:
    """A statistic with its interval; without one where a task has a single run, which tells nothing of other seeds."""
    estimate: Estimate = statistic(*[[list(inside.values()) for inside in scores.values()] for scores in by_method])
    several = min(len(inside) for scores in by_method for inside in scores.values()) > 1
    return {"value": estimate.value} | {name: getattr(estimate, name) if several else None for name in ("low", "high")}
