"""Runs grouped into methods, and what their runs reached.

A method is one configuration apart from seed, folder, dataset and what only observes (callbacks, loggers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tql_lightning.report.runs import Run
from tql_lightning.report.statistics import Estimate, interquartile_mean, probability_of_improvement

# Scores by preference, what to call them, and whether several tasks share their scale.
SCORES = {
    "success_rate": ("success rate", True),
    "normalized_score": ("normalised score", True),
    "return": ("return", False),
}
LONGEST_LABEL = 60
MOST_COMPARED = 5  # methods, of which every pair is compared: ten pairs


@dataclass(frozen=True)
class Method:
    """Runs of one configuration.

    Attributes:
        label: short and unique in a report.
        index: its colour.
        runs: over seeds and tasks.
    """

    label: str
    index: int
    runs: Sequence[Run]

    def on(self, task: str) -> list[Run]:
        """Its runs on a task."""
        return [run for run in self.runs if run.task == task]


@dataclass(frozen=True)
class Result:
    """What a method's runs reached on one task, or on all tasks together.

    Attributes:
        method: whose.
        task: or None for all.
        estimate: interquartile mean over runs of the last evaluation; None where none was made.
        best: the highest mean of an evaluation of any run.
        runs: how many count; the others were never evaluated.
        updates: smallest and largest number of updates of the evaluations that count.
        over_episodes: the interval is that of a single run's episodes.
        over_runs: the interval is that of runs: of every task there are two.
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
    """How probable it is that a run of one method beats a run of another.

    Attributes:
        method: that more probably does.
        other: the other one.
        estimate: of the probability.
        over_runs: as for `Result`, of both.
    """

    method: Method
    other: Method
    estimate: Estimate
    over_runs: bool


def group_methods(runs: Sequence[Run]) -> list[Method]:
    """Methods in the order of their first run."""
    grouped: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.method_key, []).append(run)
    groups = list(grouped.values())
    return [
        Method(label, index, group) for index, (label, group) in enumerate(zip(_labels(groups), groups, strict=True))
    ]


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The folder that a group's runs share, where that tells groups apart; else the settings that differ."""
    folders = [{run.folder.absolute().parent.name for run in group} for group in groups]
    labels = [next(iter(names)) if len(names) == 1 and len(group) > 1 else group[0].name
              for names, group in zip(folders, groups, strict=True)]  # fmt: skip
    if len(set(labels)) == len(labels):
        return labels
    differing = differences([dict(group[0].method_key) for group in groups])
    texts = []
    for index, group in enumerate(groups):
        settings = ", ".join(f"{key.rpartition('.')[2]}={values[index]}" for key, values in differing.items())
        texts.append(f"{index + 1}: {settings or group[0].name}"[:LONGEST_LABEL])
    return texts


def differences(configs: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Settings that not all configurations share: dotted key -> the value of each, "–" where it has none."""
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key, "–") for config in configs] for key in keys}
    return {key: each for key, each in values.items() if len(set(each)) > 1}


def choose_score(runs: Sequence[Run]) -> str | None:
    """The score that most tells: one of `SCORES` that some run was evaluated by."""
    return next((name for name in SCORES if any(f"eval/{name}" in run.series for run in runs)), None)


def results(methods: Sequence[Method], tasks: Sequence[str], score: str) -> list[Result]:
    """By task and method, and over all tasks where they are several and share a scale."""
    groups: list[tuple[str | None, list[str]]] = [(task, [task]) for task in tasks]
    if len(tasks) > 1 and SCORES[score][1]:
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
    estimate = _known(interquartile_mean(by_task), over_runs)
    if len(scored) == 1:
        estimate, over_episodes = _single(runs, score, estimate)
    ends = [updates[-1] for updates, _ in scored]
    best = max(max(values) for _, values in scored)
    return Result(method, task, estimate, best, len(scored), (min(ends), max(ends)), over_episodes, over_runs)


def _single(runs: Sequence[Run], score: str, estimate: Estimate) -> tuple[Estimate, bool]:
    """A single run says nothing of other seeds; its last evaluation's interval is of its episodes."""
    (run,) = [run for run in runs if f"eval/{score}" in run.series]
    low, high = (run.series.get(f"eval/{score}_{end}") for end in ("low", "high"))
    if low is None or high is None or low[1][-1] == high[1][-1]:  # of one episode, or all alike
        return estimate, False
    return Estimate(estimate.value, low[1][-1], high[1][-1]), True


def last_scores(method: Method, tasks: Sequence[str], score: str) -> list[list[float]]:
    """The last evaluation of every run by task, without tasks that none was evaluated on."""
    key = f"eval/{score}"
    by_task = [[run.series[key][1][-1] for run in method.on(task) if key in run.series] for task in tasks]
    return [scores for scores in by_task if scores]


def comparisons(methods: Sequence[Method], tasks: Sequence[str], score: str) -> list[Comparison]:
    """Every pair of methods that ran on the same tasks, each pair once: the one more probably better first.

    Of more than `MOST_COMPARED` methods only the pairs with the one that is most probably better than the others.
    """
    found = [
        _comparison(method, other, tasks, score)
        for index, method in enumerate(methods)
        for other in methods[index + 1 :]
    ]
    pairs = [pair for pair in found if pair is not None]
    if len(methods) <= MOST_COMPARED:
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
    estimate, over_runs = probability_of_improvement(own, others), _several(own) and _several(others)
    if estimate.value >= 0.5:
        return Comparison(method, other, _known(estimate, over_runs), over_runs)
    return Comparison(other, method, _known(probability_of_improvement(others, own), over_runs), over_runs)


def _known(estimate: Estimate, over_runs: bool) -> Estimate:
    """Without the interval where it is none of runs."""
    return estimate if over_runs else Estimate(*[estimate.value] * 3)


def _several(by_task: Sequence[Sequence[float]]) -> bool:
    """Whether every task has two runs; drawing the only one anew tells nothing of other seeds."""
    return min(len(scores) for scores in by_task) > 1
