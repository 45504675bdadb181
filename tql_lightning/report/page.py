"""The page: runs -> methods -> results, charts, pictures -> one HTML file that needs no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tql_lightning.report.baselines import absent_baselines, baselines_on
from tql_lightning.report.charts import constants, sections
from tql_lightning.report.entropy import entropy_note
from tql_lightning.report.media import KINDS, Media, collect_media
from tql_lightning.report.methods import (
    MAX_COMPARED,
    Comparison,
    Method,
    Result,
    choose_score,
    comparisons,
    differences,
    group_methods,
    results,
)
from tql_lightning.report.numbers import SCORES, Score, number
from tql_lightning.report.runs import Run, read_runs
from tql_lightning.report.statistics import Estimate
from tql_lightning.report.verdict import verdict
from tql_lightning.system.files import require_writable, write_text_whole

if TYPE_CHECKING:
    import jinja2

MAIN_PACKAGES = ("tql-lightning", "torch", "lightning", "numpy", "gymnasium", "ogbench", "minari", "mujoco")
MEGABYTE = 10**6
COLORS = 8  # in the style sheet
MAX_LISTED = 5  # names in a note


def write_report(
    folders: Sequence[Path], output: Path, media_mb: float = 30.0, table: Callable[[Sequence[Run]], str] | None = None
) -> Path:
    """Writes a self-contained page about runs.

    Args:
        folders: Folders of runs, or folders that hold runs.
        output: Path of the HTML file.
        media_mb: Most megabytes of pictures and videos, encoded. The page names files that do not fit.
        table: Makes the table of scores as HTML from the runs; "" for a page without.

    Returns:
        ``output``.

    Raises:
        ReportError: a folder holds no run, or a run's files are damaged.
        ValueError: the file cannot be written, or ``media_mb`` is negative.
    """
    if media_mb < 0:
        raise ValueError(f"media_mb: expected at least 0, found {media_mb}")
    require_writable(output)
    runs = read_runs(folders)
    scores = "" if table is None else table(runs)
    write_text_whole(output, render(runs, collect_media(runs, int(media_mb * MEGABYTE)), scores))
    return output


def render(runs: Sequence[Run], media: Media, table: str = "") -> str:
    """The page as HTML text; ``table`` is HTML, too."""
    here = files("tql_lightning.report")
    methods = group_methods(runs)
    tasks = list(dict.fromkeys(run.task for run in runs))
    score = choose_score(runs)
    found = [] if score is None else results(methods, tasks, score)
    pairs = [] if score is None else comparisons(methods, tasks, score)
    chart_sections = sections(methods, tasks)
    charts = [chart for _, inside in chart_sections for chart in inside]
    numbered = iter(range(len(charts)))
    return _template().render(
        style=(here / "style.css").read_text(),
        script=(here / "charts.js").read_text(),
        runs=runs,
        table=table,
        methods=methods,
        tasks=tasks,
        score=None if score is None else SCORES[score],
        verdict=None if score is None else _verdict(found, pairs, methods, score),
        entropy_note=entropy_note(runs),
        absent_baselines=absent_baselines(methods, tasks, score) if found and score is not None else [],
        cards=_cards(found, runs, score),
        result_groups=[] if score is None else _result_groups(found, methods, score),
        comparisons=[_track(pair, pair.estimate, 0.0, 1.0) for pair in pairs],
        notes=_notes(runs, found, pairs, media),
        most_compared=MAX_COMPARED,
        sections=[(title, [(next(numbered), chart) for chart in inside]) for title, inside in chart_sections],
        charts=charts,
        constants=constants(methods, tasks),
        media=media,
        kinds=KINDS,
        differences=_differences(methods),
        environment=_environment(runs),
        packages=_packages(runs),
        colors=COLORS,
    )


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = number
    return environment.from_string((files("tql_lightning.report") / "template.html").read_text())


def _cards(found: Sequence[Result], runs: Sequence[Run], score: str | None) -> list[dict[str, str]]:
    """The headline figures, each with label, figure and remark."""
    cards = []
    ranked = [result for result in found if result.estimate is not None and result.task == found[0].task]
    if ranked and score is not None:
        shown = SCORES[score]
        top = max(ranked, key=lambda result: result.estimate.value if result.estimate else -math.inf)
        assert top.estimate is not None
        cards.append(
            {
                "label": f"{shown.title}, last evaluation",
                "figure": shown.text(top.estimate.value) + shown.unit,
                "remark": f"{top.method.label}: {_interval(top, shown)}",
            }
        )
        best = max(ranked, key=lambda result: result.best if result.best is not None else -math.inf)
        cards.append(
            {
                "label": "best evaluation of a run",
                "figure": shown.text(best.best) + shown.unit,
                "remark": best.method.label,
            },
        )
    entropy = _lowest_entropy(runs)
    if entropy is not None:
        cards.append(entropy)
    updates = [run.updates for run in runs]
    cards.append(
        {
            "label": "updates",
            "figure": number(max(updates)),
            "remark": "in every run" if min(updates) == max(updates) else f"{number(min(updates))} in the shortest run",
        }
    )
    return cards


def _verdict(found: Sequence[Result], pairs: Sequence[Comparison], methods: Sequence[Method], score: str) -> str | None:
    task = found[0].task if found else None
    baselines = {} if task is None else baselines_on(methods, task, score)
    return verdict(found, pairs, SCORES[score], baselines)


def _interval(result: Result, score: Score) -> str:
    assert result.estimate is not None
    low, high = score.text(result.estimate.low), score.text(result.estimate.high)
    if result.over_episodes:
        return f"one run, 95 % interval of its episodes {low} to {high}"
    what = f"IQM of {result.runs} runs" if result.runs > 1 else "one run"
    return f"{what}, 95 % interval {low} to {high}" if result.over_runs else what


def _lowest_entropy(runs: Sequence[Run]) -> dict[str, str] | None:
    """Headline figure: the lowest share of its maximum that a layer's entropy has at the end of a run."""
    prefix = "train/attention_entropy_share/"
    shares = [
        (values[-1], key.removeprefix(prefix), run)
        for run in runs
        for key, (_, values) in run.series.items()
        if key.startswith(prefix) and math.isfinite(values[-1])
    ]
    if not shares:
        return None
    share, key, run = min(shares, key=lambda each: each[0])
    entropy, target = (run.series.get(f"train/{name}/{key}") for name in ("attention_entropy", "target_entropy"))
    nats = "" if entropy is None else f"{number(entropy[1][-1])} nats, "
    aim = "no target" if target is None else f"target {number(target[1][-1])}"
    where = key.replace("_", " ").replace("/value", ", [VALUE]").replace("/", ", ")
    return {
        "label": "lowest attention entropy, of its maximum",
        "figure": f"{100 * share:.0f} %",
        "remark": f"{nats}{aim}; {where}; {run.name}",
    }


def _result_groups(found: Sequence[Result], methods: Sequence[Method], score: str) -> list[dict[str, Any]]:
    """Results and baselines grouped by task, with the positions of value and interval on a common scale."""
    groups = []
    for task in dict.fromkeys(result.task for result in found):
        inside = [result for result in found if result.task == task]
        ends = [end for result in inside if result.estimate is not None for end in result.estimate]
        if ends:
            baselines = {} if task is None else baselines_on(methods, task, score)
            ends += baselines.values()
            margin = 0.04 * (max(ends) - min(ends)) or 1.0
            low, high = (0.0, 1.0) if score == "success_rate" else (min(ends) - margin, max(ends) + margin)
            rows = [_track(result, result.estimate, low, high) for result in inside if result.estimate is not None]
            known = [_track(name, Estimate(*[value] * 3), low, high) for name, value in baselines.items()]
            groups.append({"task": task, "rows": rows, "baselines": known})
    return groups


def _track(item: Result | Comparison | str, estimate: Estimate, low: float, high: float) -> dict[str, Any]:
    """Positions of an estimate on a scale, in per cent of its width."""

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    start, end = place(estimate.low), place(estimate.high)
    return {"item": item, "estimate": estimate, "start": start, "width": end - start, "dot": place(estimate.value)}


def _notes(runs: Sequence[Run], found: Sequence[Result], pairs: Sequence[Comparison], media: Media) -> list[str]:
    """Notes that a reader needs before comparing scores."""
    notes = []
    if short := [f"{run.name} ({number(run.updates)} of {number(run.planned)})" for run in runs if run.is_short]:
        notes.append(f"Not at their last update, because they are running, were stopped or failed: {_listed(short)}.")
    counted = [result for result in found if result.estimate is not None]
    absent = [
        f"{missing} of {result.method.label}"
        for result in found
        if result.task is not None and (missing := len(result.method.on(result.task)) - result.runs)
    ]
    if absent and counted:
        notes.append(f"Runs without an evaluation, which no score includes: {_listed(absent)}.")
    ends = {end for result in counted for end in result.updates}
    if len(ends) > 1:
        notes.append(
            f"The last evaluations were made at different updates, from {number(min(ends))} to {number(max(ends))}: "
            "compare the curves, not the scores."
        )
    if any(result.runs < 3 for result in counted if result.task is not None):
        notes.append("Some methods have fewer than three runs on a task; other seeds may differ more than shown.")
    drawn = [each.estimate for each in found if each.over_runs] + [each.estimate for each in pairs if each.over_runs]
    if any(estimate is not None and estimate.low == estimate.high for estimate in drawn):
        notes.append(
            "An interval of width 0: every resample of these runs gives the same value. Other runs may differ."
        )
    if media.left_out:
        names = [f"{path.parent.name}/{path.name}" for path in media.left_out]
        notes.append(f"Pictures and videos left out by --media_mb: {_listed(names)}.")
    return notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _differences(methods: Sequence[Method]) -> dict[str, list[str]]:
    """Settings that differ between methods; runs of one method share all that change an update."""
    return differences([dict(method.runs[0].method_key) for method in methods])


def _environment(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Property -> values with the names of their runs, as recorded at each run's last start."""
    rows: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for start in run.starts[-1:]:
            packages = start.get("packages", {})
            properties = {
                "Python": start.get("python"),
                "system": start.get("system"),
                "device": start.get("device"),
                "processes": start.get("processes"),
                "CPU cores": start.get("cores"),
                "threads (OMP_NUM_THREADS)": start.get("threads"),
                **{name: packages[name] for name in MAIN_PACKAGES if name in packages},
            }
            for name, value in properties.items():
                rows.setdefault(name, {}).setdefault("not set" if value is None else str(value), []).append(run.name)
    return [(name, list(values.items())) for name, values in rows.items()]


def _packages(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Each distinct set of installed packages as a constraints file, with the names of its runs."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for start in run.starts[-1:]:
            lines: Iterable[str] = (f"{name}=={version}" for name, version in start.get("packages", {}).items())
            found.setdefault("\n".join(lines), []).append(run.name)
    return list(found.items())
