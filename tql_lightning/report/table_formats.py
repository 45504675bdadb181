"""Renders the summary of a benchmark as Markdown, LaTeX, CSV, HTML or JSON."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from tql_lightning.report.methods import MAX_COMPARED
from tql_lightning.report.numbers import NONE, number, score_named
from tql_lightning.report.protocol import DESCRIPTIONS
from tql_lightning.report.runs import ReportError
from tql_lightning.report.table import Summary
from tql_lightning.trust.text import shown

TableFormat = Literal["md", "csv", "latex", "json"]
MARK = "†"  # of published figures
UNFINISHED = "unfinished"
MOST_NAMED = 50  # unfinished runs in a note


def render_table(summary: Summary, format: TableFormat) -> str:  # noqa: A002  (the option's name)
    """The summary as text in a format."""
    renderers: dict[TableFormat, Callable[[Summary], str]] = {
        "md": _markdown,
        "csv": _csv,
        "latex": _latex,
        "json": lambda each: json.dumps(each, indent=1) + "\n",
    }
    with _shown_or_refused():
        return renderers[format](summary)


@contextmanager
def _shown_or_refused() -> Iterator[None]:
    """Refuses a summary, or the record of a search, that a file gave in another shape than `report.table` says."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ReportError(
            f"report: expected scores as tql report --format json writes them, found other values "
            f"({type(error).__name__}: {shown(str(error))})"
        ) from error


def table_html(summary: Summary) -> str:
    """The table as HTML, for the page of runs, which compares methods itself."""
    with _shown_or_refused():
        return _html(summary)


def _html(summary: Summary) -> str:
    parts: list[str | list[list[str]]] = [_cells(summary), *_notes(summary | {"improvement": []})]
    parts += _search_parts(summary["search"]) if "search" in summary else []
    return f"<h3>Mean over seeds, {html.escape(DESCRIPTIONS[summary['protocol']])}</h3>\n" + "".join(
        f'<p class="soft small">{html.escape(part)}</p>\n' if isinstance(part, str) else _html_table(part)
        for part in parts
    )


def _html_table(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    cells = "".join(f'<th scope="col" class="r">{html.escape(cell)}</th>' for cell in head[1:])
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(
            f'<td class="r" data-label="{html.escape(name)}">{html.escape(cell)}</td>'
            for name, cell in zip(head[1:], row[1:], strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of scores">\n<table class="scores">\n'
        f'<thead><tr><th scope="col">{html.escape(head[0])}</th>{cells}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )


def _markdown(summary: Summary) -> str:
    parts = [_markdown_table(_cells(summary)), *_notes(summary)]
    parts += [search_markdown(summary["search"])] if "search" in summary else []
    return "\n\n".join(parts) + "\n"


def _markdown_table(cells: Sequence[Sequence[str]]) -> str:
    aligned = ["---", *["---:"] * (len(cells[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], aligned, *cells[1:]])


def _latex(summary: Summary) -> str:
    head, *rows = [[_tex(cell) for cell in row] for row in _cells(summary)]
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule", " & ".join(head) + " \\\\", "\\midrule"]
    lines += [" & ".join(row) + " \\\\" for row in rows]
    notes = [f"% {note}" for note in _notes(summary)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *notes]) + "\n"


def _tex(text: str) -> str:
    for sign, replacement in {
        **{each: f"\\{each}" for each in "_%&#$"},
        "±": "$\\pm$",
        MARK: "$^\\dagger$",
        NONE: "--",
        "−": "$-$",
    }.items():
        text = text.replace(sign, replacement)
    return text


def _csv(summary: Summary) -> str:
    file = io.StringIO()
    fields = ("row", "kind", "method", "mean", "sd", "low", "high", "seeds", "updates", "source", "other", "state")
    writer = csv.DictWriter(file, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(summary["rows"])
    for figures in summary["published"]:
        for row, (mean, deviation) in figures["scores"].items():
            own = {name: figures.get(name) for name in ("method", "seeds", "source")}
            writer.writerow({"row": row, "kind": "published", "mean": mean, "sd": deviation} | own)
    for kind in ("iqm", "improvement"):
        for each in summary[kind]:
            own = {name: each[name] for name in ("method", "other", "low", "high") if name in each}
            writer.writerow({"row": "all", "kind": kind, "mean": each["value"]} | own)
    for run in summary["unfinished"]:
        writer.writerow({"row": run["run"], "kind": "unfinished", "state": run["state"]})
    return file.getvalue()


def _cells(summary: Summary) -> list[list[str]]:
    """Head and rows of the table: own methods first, then published figures, then interquartile means."""
    methods = list(dict.fromkeys(row["method"] for row in summary["rows"]))
    own = {(row["row"], row["method"]): row for row in summary["rows"]}
    names = list(dict.fromkeys(row["row"] for row in summary["rows"]))
    score = score_named(summary["metric"])
    show = score.text
    published = [each for each in summary["published"] if set(names) & each["scores"].keys()]
    rows = [[score.heading, *methods, *(f"{each['method']} {MARK}" for each in published)]]
    for name in names:
        cells = [_cell(own.get((name, method)), show) for method in methods]
        cells += [_published(each["scores"].get(name), show) for each in published]
        rows.append([name, *cells])
    iqm = {each["method"]: each for each in summary["iqm"]}
    if len(names) > 1:
        rows.append(["IQM", *(_estimate(iqm[method], show) for method in methods), *[NONE] * len(published)])
    if not methods:
        return [*rows, ["no run has a score yet"]]
    seeds = {method: [row["seeds"] for row in summary["rows"] if row["method"] == method] for method in methods}
    rows.append(
        [
            "seeds",
            *(_range(seeds[method]) for method in methods),
            *(str(each.get("seeds") or NONE) for each in published),
        ]
    )
    updates = [_range(run["updates"] for run in summary["runs"] if run["method"] == method) for method in methods]
    rows.append(["updates", *updates, *[NONE] * len(published)])
    return rows


def search_markdown(search: Mapping[str, Any]) -> str:
    """The record of a search as Markdown: every trial, the best with its interval, the tuning-budget curves."""
    return "\n\n".join(part if isinstance(part, str) else _markdown_table(part) for part in _search_parts(search))


def _search_parts(search: Mapping[str, Any]) -> list[str | list[list[str]]]:
    """Paragraphs, and tables as cells, of the record of a search."""
    score = score_named(search["metric"])
    show = score.text
    ranked = sorted(search["trials"], key=lambda each: (each["mean"] is None, -(each["mean"] or 0.0)))
    rows = [
        [
            _settings(each),
            UNFINISHED if each["mean"] is None else show(each["mean"]),
            ", ".join(map(show, each["scores"])) or NONE,
        ]
        for each in ranked
    ]
    parts: list[str | list[list[str]]] = [[["trial", f"mean {score.heading}", "runs"], *rows]]
    if not search.get("finished", True):
        whole = sum(each["mean"] is not None for each in ranked)
        parts.insert(
            0,
            f"Unfinished search: {whole} of {search['planned']} trials have a score so far. The command that began it "
            "continues it.",
        )
    best = search["best"]
    if best is not None:
        interval = "" if best["low"] is None else f" [{show(best['low'])}, {show(best['high'])}]"
        parts.append(f"Best: {_settings(best)}, {show(best['mean'])}{interval}; chosen by this score, and so too high.")
    if search["curves"]:
        head = ["evaluation episodes", *(f"best of {curve['policies']}" for curve in search["curves"])]
        points = zip(*(curve["points"] for curve in search["curves"]), strict=True)
        body = [
            [str(row[0][0]), *(f"{show(mean)} [{show(low)}, {show(high)}]" for _, mean, low, high in row)]
            for row in points
        ]
        parts.append("Tuning-budget curve (arXiv 2504.11453): expected score of the policy that a bandit chooses.")
        parts.append([head, *body])
    return parts


def _settings(trial: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_rounded(value)}" for key, value in trial["settings"].items())


def _rounded(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _cell(row: dict[str, Any] | None, show: Callable[[float], str]) -> str:
    if row is None:
        return NONE
    deviation = "" if row["sd"] is None else f" ± {show(row['sd'])}"
    interval = "" if row["low"] is None else f" [{show(row['low'])}, {show(row['high'])}]"
    return f"{show(row['mean'])}{deviation}{interval}"


def _published(score: Sequence[float | None] | None, show: Callable[[float], str]) -> str:
    if score is None or score[0] is None:
        return NONE
    return show(score[0]) + ("" if score[1] is None else f" ± {show(score[1])}")


def _estimate(estimate: dict[str, Any], show: Callable[[float], str]) -> str:
    interval = "" if estimate["low"] is None else f" [{show(estimate['low'])}, {show(estimate['high'])}]"
    return f"{show(estimate['value'])}{interval}"


def _range(values: Any) -> str:
    found = sorted(set(values))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def _pairs_to_tell(pairs: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Every pair of few methods; of many, those with the method that is most probably better than the others."""
    won: dict[str, float] = {}
    for pair in pairs:
        for name, sign in (("method", 1), ("other", -1)):
            won[pair[name]] = won.get(pair[name], 0.0) + sign * (pair["value"] - 0.5)
    if len(won) <= MAX_COMPARED:
        return pairs
    best = max(won, key=lambda name: won[name])
    return [pair for pair in pairs if best in (pair["method"], pair["other"])]


def _notes(summary: Summary) -> list[str]:
    """What a reader needs beside the table: protocol, probabilities of improvement, sources, unfinished runs."""
    rows = {row["row"]: row["kind"] for row in summary["rows"]}
    domain = "; a domain's deviation is that of its mean over tasks" if "domain" in rows.values() else ""
    iqm = " IQM: interquartile mean over runs of all tasks." if len(rows) > 1 else ""
    notes = [
        f"Score of a run: {DESCRIPTIONS[summary['protocol']]}. Mean ± standard deviation over seeds [95 % bootstrap "
        f"interval over seeds]{domain}.{iqm}"
    ]
    for pair in _pairs_to_tell(summary["improvement"]):
        interval = "" if pair["low"] is None else f" [{number(pair['low'])}, {number(pair['high'])}]"
        notes.append(f"Probability that {pair['method']} beats {pair['other']}: {number(pair['value'])}{interval}.")
    sources = dict.fromkeys(f"{each['method']}: {each['source']}" for each in summary["published"])
    if sources:
        notes.append(f"{MARK} published, not run here. {'; '.join(sources)}.")
    if summary["unfinished"]:
        listed = "; ".join(f"{each['run']} ({each['state']})" for each in summary["unfinished"][:MOST_NAMED])
        left_out = len(summary["unfinished"]) - MOST_NAMED
        listed += f"; and {left_out:,} more, which --format json names" if left_out > 0 else ""
        notes.append(f"Unfinished, and in no score: {listed}.")
    return notes
