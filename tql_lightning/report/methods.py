"""Runs grouped into methods, and the scores of methods.

A method is one configuration, apart from seed, folder, dataset and observers (callbacks, loggers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tql_lightning.report.numbers import SCORES
from tql_lightning.report.runs import Run
from tql_lightning.report.statistics import Estimate, interquartile_mean, probability_of_improvement

MAX_LABEL = 60  # characters
MAX_COMPARED = 5  # methods of which every pair is compared: ten pairs


@dataclass(frozen=True)
class Method:
    """Runs of one configuration.

    Attributes:
        label: Short name, unique in a report.
        index: Index of its colour.
        runs: Runs over seeds and tasks.
    """

    label: str
    index: int
    runs: Sequence[Run]

    def on(self, task: str) -> list[Run]:
        """Runs on a task."""
        return [run for run in self.runs if run.task == task]


@dataclass(frozen=True)
class Result:
    """Score of a method's runs on one task, or on all tasks together.

    Attributes:
        method: The method.
        task: The task; None for all.
        estimate: Interquartile mean of the last evaluations over runs; None without any evaluation.
        best: Highest mean of an evaluation of any run.
        runs: Number of evaluated runs.
        updates: Smallest and largest update of the last evaluations.
        over_episodes: Whether the interval is over the episodes of a single run.
        over_runs: Whether the interval is over runs, which needs two of every task.
    """

    method: Method
    task: str | None
    estimate: Estimate | None
    best: float | None
    runs: int
    updates: tuple[int, int]
    over_episodes: bool = False
    over_runs: bool = False


@dataclass(frozen=True)
class Comparison:
    """Probability that a run of ``method``, probably the better one, beats a run of ``other``; see `Result`."""

    method: Method
    other: Method
    estimate: Estimate
    over_runs: bool


def group_methods(runs: Sequence[Run]) -> list[Method]:
    """Groups runs into methods, in the order of their first run."""
    grouped: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.method_key, []).append(run)
    groups = list(grouped.values())
    return [
        Method(label, index, group) for index, (label, group) in enumerate(zip(_labels(groups), groups, strict=True))
    ]


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Names groups by the folder that their runs share, or by their settings if folders are not unique."""
    folders = [{run.folder.absolute().parent.name for run in group} for group in groups]
    labels = [next(iter(names)) if len(names) == 1 and len(group) > 1 else group[0].name
              for names, group in zip(folders, groups, strict=True)]  # fmt: skip
    if len(set(labels)) == len(labels):
        return labels
    differing = differences([dict(group[0].method_key) for group in groups])
    texts = []
    for index, group in enumerate(groups):
        settings = ", ".join(f"{key.rpartition('.')[2]}={values[index]}" for key, values in differing.items())
        texts.append(f"{index + 1}: {settings or group[0].name}"[:MAX_LABEL])
    return texts


def differences(configs: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Settings that differ: dotted key -> value in each configuration, "–" if it has none."""
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key, "–") for config in configs] for key in keys}
    return {key: each for key, each in values.items() if len(set(each)) > 1}


def choose_score(runs: Sequence[Run]) -> str | None:
    """The first of `SCORES` that a run has; None if there is none."""
    return next((name for name in SCORES if any(f"eval/{name}" in run.series for run in runs)), None)


def results(methods: Sequence[Method], tasks: Sequence[str], score: str) -> list[Result]:
    """Results by task and method; and over all tasks, if there are several with a common scale."""
    groups: list[tuple[str | None, list[str]]] = [(task, [task]) for task in tasks]
    if len(tasks) > 1 and SCORES[score].shared:
        groups.insert(0, (None, list(tasks)))
    return [
        _result(method, task, inside, score)
        for task, inside in groups
        for method in methods
        if any(method.on(each) for each in inside)
    ]


def _result(method: Method, task: str | None, tasks: Sequence[str], score: str) -> Result:
    runs = [run for each in tasks for run in method.on(each)]
    scored = [run.series[f"eval/{score}"] for run in runs if f"eval/{score}" in run.series]
    if not scored:
        return Result(method, task, None, None, 0, (0, 0))
    by_task = last_scores(method, tasks, score)
    over_runs, over_episodes = _several(by_task), False
    estimate = _over_runs(interquartile_mean(by_task), over_runs)
    if len(scored) == 1:
        estimate, over_episodes = _single(runs, score, estimate)
    ends = [updates[-1] for updates, _ in scored]
    best = max(max(values) for _, values in scored)
    return Result(method, task, estimate, best, len(scored), (min(ends), max(ends)), over_episodes, over_runs)


def _single(runs: Sequence[Run], score: str, estimate: Estimate) -> tuple[Estimate, bool]:
    """For a single run, the interval over the episodes of its last evaluation: nothing is known of other seeds."""
    (run,) = [run for run in runs if f"eval/{score}" in run.series]
    low, high = (run.series.get(f"eval/{score}_{end}") for end in ("low", "high"))
    if low is None or high is None or low[1][-1] == high[1][-1]:  # one episode, or equal ones
        return estimate, False
    return Estimate(estimate.value, low[1][-1], high[1][-1]), True


def last_scores(method: Method, tasks: Sequence[str], score: str) -> list[list[float]]:
    """Score of each run's last evaluation, by task; tasks without evaluation are left out."""
    key = f"eval/{score}"
    by_task = [[run.series[key][1][-1] for run in method.on(task) if key in run.series] for task in tasks]
    return [scores for scores in by_task if scores]


def comparisons(methods: Sequence[Method], tasks: Sequence[str], score: str) -> list[Comparison]:
    """Compares every two methods on the tasks that both ran on; the probably better method comes first.

    With more than `MAX_COMPARED` methods, only pairs with the method that is most probably better than the others.
    """
    found = [
        _comparison(method, other, tasks, score)
        for index, method in enumerate(methods)
        for other in methods[index + 1 :]
    ]
    pairs = [pair for pair in found if pair is not None]
    if len(methods) <= MAX_COMPARED:
        return pairs
    won = dict.fromkeys(range(len(methods)), 0.0)
    for pair in pairs:
        won[pair.method.index] += pair.estimate.value - 0.5
        won[pair.other.index] -= pair.estimate.value - 0.5
    top = max(won, key=lambda index: won[index])
    return [pair for pair in pairs if top in (pair.method.index, pair.other.index)]


def _comparison(method: Method, other: Method, tasks: Sequence[str], score: str) -> Comparison | None:
    shared = [task for task in tasks if last_scores(method, [task], score) and last_scores(other, [task], score)]
    if not shared:
        return None
    own, others = last_scores(method, shared, score), last_scores(other, shared, score)
    if len(shared) == 1 and 1 in (len(own[0]), len(others[0])):
        return None  # a single run says nothing of other seeds
    estimate, over_runs = probability_of_improvement(own, others), _several(own) and _several(others)
    if estimate.value >= 0.5:
        return Comparison(method, other, _over_runs(estimate, over_runs), over_runs)
    return Comparison(other, method, _over_runs(probability_of_improvement(others, own), over_runs), over_runs)


def _over_runs(estimate: Estimate, over_runs: bool) -> Estimate:
    """The estimate, with its interval only if that is over runs."""
    return estimate if over_runs else Estimate(*[estimate.value] * 3)


def _several(by_task: Sequence[Sequence[float]]) -> bool:
    """Whether every task has at least two runs, without which resampling says nothing about other seeds."""
    return min(len(scores) for scores in by_task) > 1
