"""Data of the page's charts for charts.js: each method's runs over training."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tql_lightning.report.baselines import baselines_on
from tql_lightning.report.methods import Method
from tql_lightning.report.numbers import NONE, SCORES, number, score_named
from tql_lightning.report.runs import Run
from tql_lightning.report.statistics import interquartile_mean
from tql_lightning.run.baselines import DATASET

BASELINE_COLOR = 7  # grey, in the style sheet
MAX_POINTS = 200  # of a line; longer ones are thinned
RESAMPLES = 200  # per point of a curve
Chart = dict[str, Any]

# Sections of the page in order: title, pattern of the keys in them.
SECTIONS = (
    ("Evaluation", r"eval/(?!failures$)(?!.*_(stderr|low|high)$).*"),
    ("Attention entropy", r"train/attention_entropy/.*"),
    ("Temperatures", r"train/temperature/.*"),
    ("Values", r"train/(target_q_mean|q_mean|policy_q_mean|q_slope|q_roughness)"),
    ("Losses", r"train/\w*_loss"),
    ("Online phase", r"env_steps|online/.*"),
)
REST = ("Everything else that was logged", r"(?!.*_(stderr|low|high)$)(?!train/target_entropy/).*")
# Values that an axis always includes: entropy 0 is collapse, and a rate lies between 0 and 1.
BOUNDS = {
    "train/attention_entropy/": (0.0, None),
    "eval/success_rate": (0.0, 100.0),
    "eval/length": (0.0, None),
    "eval/failures": (0.0, None),
}
CAPITALS = {"q": "Q", "td": "TD", "bc": "BC", "gb": "(GB)"}
TITLES = {name: score.heading for name, score in SCORES.items()} | {"length": "episode length"}


def sections(methods: Sequence[Method], tasks: Sequence[str]) -> list[tuple[str, list[Chart]]]:
    """Charts by section, without empty sections and what `constants` lists. The last holds the keys of no other."""
    metrics = _metrics(methods, tasks, constant=False)
    found = []
    for title, pattern in (*SECTIONS, REST):
        inside = [metric for metric in metrics if re.fullmatch(pattern, metric[0])]
        metrics = [metric for metric in metrics if metric not in inside]
        if inside:
            found.append((title, [_chart(key, task, methods, len(tasks) > 1) for key, task in inside]))
    return found


def constants(methods: Sequence[Method], tasks: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Metrics that change in no run of a task, of which a chart would show nothing: title, key, value by method."""
    found = []
    for key, task in _metrics(methods, tasks, constant=True):
        if re.fullmatch(REST[1], key):
            values = [_distinct(key, method.on(task)) for method in methods]
            texts = [" to ".join(map(number, (each[0], each[-1])[: len(each)])) if each else NONE for each in values]
            found.append((f"{_title(key)} – {task}" if len(tasks) > 1 else _title(key), key, texts))
    return found


def _metrics(methods: Sequence[Method], tasks: Sequence[str], constant: bool) -> list[tuple[str, str]]:
    """Metrics with the tasks on which runs log them: those that are constant in every run, or the others.

    Scores are no constants: a success rate of 0 throughout is a result.
    """
    found = []
    for key in sorted({key for method in methods for run in method.runs for key in run.series}, key=_order):
        for task in tasks:
            runs = [run for method in methods for run in method.on(task) if key in run.series]
            score = key.startswith("eval/") and key.removeprefix("eval/") in SCORES
            if runs and constant == (not score and all(len(_distinct(key, [run])) < 2 for run in runs)):
                found.append((key, task))
    return found


def _distinct(key: str, runs: Iterable[Run]) -> list[float]:
    """Finite values of a metric in order, as far as six digits tell them apart."""
    values = (value for run in runs for value in run.series.get(key, ([], []))[1])
    return sorted({float(f"{value:.6g}") for value in values if math.isfinite(value)})


def _order(key: str) -> tuple[int, str]:
    """Sort key: scores by preference, then names; the [VALUE] query before the others."""
    names = ["eval/success_rate", "eval/normalized_score", "eval/return", "eval/length"]
    return names.index(key) if key in names else len(names), key.replace("/others", "/value others")


def _chart(key: str, task: str, methods: Sequence[Method], several_tasks: bool) -> Chart:
    lines: list[dict[str, Any]] = []
    for method in methods:
        runs = [run for run in method.on(task) if key in run.series]
        if runs:
            lines.append({"name": method.label, "color": method.index, **_curve(runs, key)})
            if (begins := runs[0].online_from) is not None:
                lines[-1]["online"] = begins
    target = key.replace("attention_entropy", "target_entropy")
    if target != key:
        for method in methods:
            runs = [run for run in method.on(task) if target in run.series]
            if runs:
                curve = _curve(runs[:1], target)
                lines.append({"name": f"target, {method.label}", "color": method.index, "dashed": True, **curve})
    every = sorted({update for line in lines for update in line["x"]})
    factor = score_named(key).factor
    lines += [
        {"name": name, "color": BASELINE_COLOR, "dashed": True, "dotted": name != DATASET, "runs": 1, "x": every}
        | {"y": [factor * value] * len(every)}
        for name, value in (baselines_on(methods, task, key.removeprefix("eval/")) if lines else {}).items()
    ]
    title = _title(key)
    bounds = next((bounds for start, bounds in BOUNDS.items() if key.startswith(start)), (None, None))
    return {"title": f"{title} – {task}" if several_tasks else title, "key": key, "bounds": bounds, "lines": lines}


def _title(key: str) -> str:
    """A metric key in words."""
    stage, slash, name = key.partition("/")
    if not slash:
        return key.replace("_", " ")
    entropy = re.fullmatch(r"(attention_entropy|temperature)/layer_(\d+)/(\w+)", name)
    if entropy:
        unit = " (nats)" if entropy[1] == "attention_entropy" else ""
        queries = "[VALUE]" if entropy[3] == "value" else entropy[3].replace("_", " ")
        return f"layer {entropy[2]}, {queries}{unit}"
    words = TITLES.get(name, name.replace("_", " ").replace("/value", "/[VALUE]").replace("/", ", "))
    words = " ".join(CAPITALS.get(word, word) for word in words.split(" "))
    return words if stage in ("eval", "train", "online") else f"{stage}: {words}"


def _curve(runs: Sequence[Run], key: str) -> dict[str, Any]:
    """Interquartile mean of the runs with its interval, at the updates that most runs share; and each run's values."""
    values = [dict(zip(*run.series[key], strict=True)) for run in runs]
    updates = _thin(_shared(values))
    counts: list[int] = []
    middle: list[float | None] = []
    low: list[float | None] = []
    high: list[float | None] = []
    factor = score_named(key).factor
    for update in updates:
        present = [run[update] for run in values if math.isfinite(run.get(update, math.nan))]
        counts.append(len(present))
        if len(present) > 1:
            estimate = interquartile_mean([present], RESAMPLES)
            middle.append(estimate.value)
            low.append(estimate.low)
            high.append(estimate.high)
        else:
            middle.append(present[0] if present else None)
            low.append(None)
            high.append(None)
    curve: dict[str, Any] = {"x": updates, "y": _rounded(middle, factor), "runs": len(runs)}
    if len(runs) > 1:
        curve |= {"low": _rounded(low, factor), "high": _rounded(high, factor)}
        curve["counts"] = counts
        curve["each"] = [_rounded([_finite(run.get(update)) for update in updates], factor) for run in values]
    elif (interval := _episodes_interval(runs[0], key, updates)) is not None:
        curve |= interval
    return curve


def _episodes_interval(run: Run, key: str, updates: Sequence[int]) -> dict[str, Any] | None:
    """Intervals over the episodes of a single run's evaluations."""
    ends = {}
    for end in ("low", "high"):
        if f"{key}_{end}" not in run.series:
            return None
        at = dict(zip(*run.series[f"{key}_{end}"], strict=True))
        ends[end] = _rounded([_finite(at.get(update)) for update in updates], score_named(key).factor)
    return ends


def _shared(runs: Sequence[Mapping[int, float]]) -> list[int]:
    """Updates, in order, at which most of the runs in progress have a value.

    A line through all updates would jump between groups of runs that log at different intervals.
    """
    every = sorted({update for run in runs for update in run})
    spans = [(run, min(run), max(run)) for run in runs]
    logged = {update: [update in run for run, low, high in spans if low <= update <= high] for update in every}
    shared = [update for update, runs_at in logged.items() if 2 * sum(runs_at) > len(runs_at)]
    return every if len(shared) < min(3, *map(len, runs)) else shared


def _thin(updates: list[int]) -> list[int]:
    """At most `MAX_POINTS` updates, evenly spaced, with the first and the last."""
    if len(updates) <= MAX_POINTS:
        return updates
    last = len(updates) - 1
    return [updates[round(index * last / (MAX_POINTS - 1))] for index in range(MAX_POINTS)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _rounded(values: Sequence[float | None], factor: float) -> list[float | None]:
    """Scaled values, rounded to six significant digits; the page shows fewer."""
    return [None if value is None else float(f"{factor * value:.6g}") for value in values]
