"""Tables equal an independent recomputation from metrics.csv, in every format."""

from __future__ import annotations

import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import call_tql
from tql_lightning.benchmark.plan import Choice, PlannedRun, plan_runs, write_plan
from tql_lightning.benchmark.suite import make_suite
from tql_lightning.benchmark.summary import summary_of
from tql_lightning.cli.configs import packaged_configs
from tql_lightning.report.numbers import number
from tql_lightning.report.protocol import Protocol
from tql_lightning.report.runs import ReportError
from tql_lightning.report.table import Entry, summarise
from tql_lightning.report.table_formats import NONE, TableFormat, render_table, table_html

RAW = {
    "metric": "success_rate",
    "seeds": [0, 1, 2, 3],
    "domains": {
        "cube-double": {"config": "ogbench/cube-double", "tasks": [1, 2]},
        "scene": {"config": "ogbench/scene", "tasks": [4]},
    },
    "methods": {"tql": {"sizes": ["1m"]}, "fql": {"configs": ["method/fql"]}},
    "published": [
        {
            "method": "tql",
            "size": "1m",
            "source": "a paper",
            "seeds": 8,
            "scores": {"cube-double": [67, 10], "scene/task_4": 25},
        }
    ],
}
UPDATES = (0, 100, 200, 300, 400)


def write_run(folder: Path, values: Sequence[float], planned: int = 400) -> None:
    """Writes what a run's score is read from; success rates at `UPDATES`, as far as there are any."""
    folder.mkdir(parents=True)
    rows = [f"{update},,{value!r}" for update, value in zip(UPDATES, values, strict=False)]
    losses = [f"{update + 50},0.5," for update in UPDATES[:-1]]
    (folder / "metrics.csv").write_text("\n".join(["step,train/td_loss,eval/success_rate", *rows, *losses]) + "\n")
    (folder / "config.yaml").write_text(f"trainer: {{max_steps: {planned}}}\n")


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A benchmark of random scores: one run of fql is unfinished, and one has not begun."""
    suite = make_suite("mine", RAW)
    runs = plan_runs(suite, Choice(), packaged_configs())
    write_plan(tmp_path, suite, runs)
    rng = np.random.default_rng(0)
    for run in runs:
        values = [float(value) for value in rng.integers(51, size=len(UPDATES)) / 50]
        if run.folder == "scene/task_4/fql/seed_3":
            values = values[:3]
        if run.folder != "scene/task_4/fql/seed_2":
            write_run(tmp_path / run.folder, values)
    return tmp_path


def scores_again(output: Path, protocol: Protocol) -> dict[tuple[str, str], dict[str, float]]:
    """Scores by task and method, then seed: read from the files by their paths alone."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for file in sorted(output.glob("*/*/*/*/metrics.csv")):
        *task, method, seed = file.parent.relative_to(output).parts
        with file.open() as opened:
            rows = [row for row in csv.DictReader(opened) if row["eval/success_rate"] and row["step"] != "0"]
        values = [float(row["eval/success_rate"]) for row in sorted(rows, key=lambda row: int(row["step"]))]
        if len(values) == 4:
            judged = {"last_three": statistics.fmean(values[-3:]), "last": values[-1], "best": max(values)}
            found["/".join(task), method][seed] = judged[protocol]
    return found


@pytest.mark.parametrize("protocol", ["last_three", "last", "best"])
def test_the_tables_figures_are_those_of_an_independent_recomputation(benchmark: Path, protocol: Protocol) -> None:
    summary = summary_of([benchmark], protocol)
    again = scores_again(benchmark, protocol)
    domains = {"cube-double": ["cube-double/task_1", "cube-double/task_2"], "scene/task_4": ["scene/task_4"]}
    lines = {task: [task] for task, _ in again} | domains | {"all": sorted({task for task, _ in again})}
    rows = {(row["row"], row["method"]): row for row in summary["rows"]}
    assert rows.keys() == {(line, method) for line in lines for method in ("tql-1m", "fql")}
    for (line, method), row in rows.items():
        by_task = [again[task, method] for task in lines[line]]
        shared = set.intersection(*map(set, by_task))
        of_seeds = [statistics.fmean(scores[seed] for scores in by_task) for seed in shared]
        assert row["mean"] == pytest.approx(statistics.fmean(statistics.fmean(each.values()) for each in by_task))
        assert row["sd"] == pytest.approx(statistics.stdev(of_seeds))
        assert row["low"] <= row["mean"] <= row["high"]
        assert (row["seeds"], row["updates"]) == (min(map(len, by_task)), 400)
    for iqm in summary["iqm"]:
        every = sorted(score for task in lines["all"] for score in again[task, iqm["method"]].values())
        cut = len(every) // 4
        assert iqm["value"] == pytest.approx(statistics.fmean(every[cut : len(every) - cut]))
        assert iqm["runs"] == len(every)
    (pair,) = summary["improvement"]
    shares = [
        statistics.fmean((own > other) + 0.5 * (own == other) for own in again[task, "tql-1m"].values()
                         for other in again[task, "fql"].values())
        for task in lines["all"]
    ]  # fmt: skip
    assert pair["value"] == pytest.approx(statistics.fmean(shares))
    assert {run["run"]: run["state"] for run in summary["unfinished"]} == {
        "scene/task_4/fql/seed_2": "not started",
        "scene/task_4/fql/seed_3": "evaluated at 200 of 400 updates",
    }


def test_every_format_shows_the_same_figures_with_published_ones_marked(benchmark: Path) -> None:
    summary = summary_of([benchmark])
    mean = next(row for row in summary["rows"] if (row["row"], row["method"]) == ("cube-double", "tql-1m"))["mean"]
    texts = {}
    for form in ("md", "csv", "latex", "json", "html"):
        output = benchmark / f"table.{form}"
        ran = call_tql(benchmark, "report", ".", "--format", form, "--output", str(output))
        assert ran.returncode == 0, ran.stderr
        texts[form] = output.read_text()
    (line,) = [line for line in texts["md"].splitlines() if line.startswith("| cube-double |")]
    assert line.split(" | ")[1].startswith(f"{number(100 * mean)} ± ")
    assert line.endswith("| 67 ± 10 |")
    assert "| success rate, % | tql-1m | fql | tql-1m † |" in texts["md"]
    assert "† published, not run here. tql-1m: a paper." in texts["md"]
    assert "scene/task_4/fql/seed_2 (not started)" in texts["md"]
    assert json.loads(texts["json"]) == summary
    rows = list(csv.DictReader(texts["csv"].splitlines()))
    assert [row["state"] for row in rows if row["row"] == "scene/task_4/fql/seed_2"] == ["not started"]
    (pair,) = [row for row in rows if row["kind"] == "improvement"]
    assert (pair["method"], pair["other"]) == ("tql-1m", "fql")
    assert pair["mean"] == str(summary["improvement"][0]["value"])
    assert [row["mean"] for row in rows if row["kind"] == "iqm"] == [str(each["value"]) for each in summary["iqm"]]
    assert [row["mean"] for row in rows if row["row"] == "cube-double"] == [str(mean), *_means(summary), "0.67"]
    assert f"{number(100 * mean)} $\\pm$" in texts["latex"]
    assert f"{number(100 * mean)} ± " in texts["html"]
    again = call_tql(benchmark, "report", "table.json", "--format", "md")
    assert again.stdout == texts["md"]


def _means(summary: dict[str, list[dict[str, float]]]) -> list[str]:
    return [str(row["mean"]) for row in summary["rows"] if (row["row"], row["method"]) == ("cube-double", "fql")]


def test_the_best_evaluation_is_marked_as_chosen_by_its_own_score(benchmark: Path) -> None:
    shown = call_tql(benchmark, "report", ".", "--format", "md", "--protocol", "best")
    assert "Score of a run: best evaluation (chosen by its own score, and so too high)." in shown.stdout


def test_a_mean_over_some_tasks_of_a_domain_does_not_stand_beside_the_published_one_of_all(tmp_path: Path) -> None:
    suite = make_suite("mine", RAW)
    runs = plan_runs(suite, Choice(["cube-double/task_1", "scene"], ["tql"], seeds=[0]), packaged_configs())
    write_plan(tmp_path, suite, runs)
    for run in runs:
        write_run(tmp_path / run.folder, [0, 1, 1, 1, 1])
    assert [row["row"] for row in summary_of([tmp_path])["rows"]] == [
        *("cube-double/task_1", "scene/task_4", "all (2 of 3 tasks)")
    ]


def test_published_figures_may_leave_out_their_seeds_and_latex_escapes_names(tmp_path: Path) -> None:
    published = {"method": "a&b_c", "source": "a paper", "scores": {"scene": 25}}
    suite = make_suite("mine", RAW | {"domains": {"scene": {"config": "ogbench/scene"}}, "published": [published]})
    (run,) = plan_runs(suite, Choice(None, ["fql"], None, [0]), packaged_configs())
    write_plan(tmp_path, suite, [run])
    write_run(tmp_path / run.folder, [0, 1, 1, 1, 1])
    summary = summary_of([tmp_path])
    assert f"| seeds | 1 | {NONE} |" in render_table(summary, "md")
    assert "success rate, \\% & fql & a\\&b\\_c $^\\dagger$ \\\\" in render_table(summary, "latex")


def test_returns_are_written_alike_in_every_table(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"seed_{seed}", [0, -1130.4, -1120, -0.5], planned=300)
        metrics = tmp_path / f"seed_{seed}" / "metrics.csv"
        metrics.write_text(metrics.read_text().replace("success_rate", "return"))
    summary = summary_of([tmp_path], "last_three")
    shown = number(-2250.9 / 3)
    written = {"md": f"{shown} ± 0 [{shown}, {shown}]", "latex": "$-$750.3 $\\pm$ 0 [$-$750.3, $-$750.3]"}
    assert all(text in render_table(summary, form) for form, text in written.items())  # type: ignore[arg-type]
    assert f"{shown} ± 0 [" in table_html(summary)
    (row,) = [row for row in csv.DictReader(render_table(summary, "csv").splitlines()) if row["kind"] == "task"]
    assert float(row["mean"]) == pytest.approx(-2250.9 / 3)


@pytest.mark.parametrize("form", ["md", "latex"])
def test_a_benchmark_without_a_score_says_so(form: TableFormat, tmp_path: Path) -> None:
    suite = make_suite("mine", RAW)
    write_plan(tmp_path, suite, plan_runs(suite, Choice(seeds=[0]), packaged_configs()))
    text = render_table(summary_of([tmp_path]), form)
    assert "no run has a score yet" in text
    assert "scene/task_4/fql/seed_0 (not started)" in text


def test_of_many_methods_the_best_one_is_compared_with_each_other_one() -> None:
    entries = [
        Entry(f"{method}-{seed}", "d", "d", f"m{method}", str(seed), [method == 3] * 3, 30)
        for method in range(6)
        for seed in range(2)
    ]
    lines = render_table(summarise(entries, "return", "last"), "md").splitlines()
    told = [line.rpartition(":")[0] for line in lines if line.startswith("Probability")]
    pairs = ("m0 beats m3", "m1 beats m3", "m2 beats m3", "m3 beats m4", "m3 beats m5")
    assert told == [f"Probability that {pair}" for pair in pairs]
    assert summarise(entries[::2], "return", "last")["improvement"] == [], "one run against one on one task"


def test_many_unfinished_runs_are_counted_where_a_note_would_name_them_all(tmp_path: Path) -> None:
    suite = make_suite("mine", RAW)
    write_plan(tmp_path, suite, plan_runs(suite, Choice(seeds=range(20)), packaged_configs()))
    summary = summary_of([tmp_path])
    assert len(summary["unfinished"]) == 120
    assert "and 70 more, which --format json names" in render_table(summary, "md")


def test_the_page_of_a_benchmark_whose_runs_have_no_score_yet_names_them(tmp_path: Path) -> None:
    suite = make_suite("mine", RAW)
    runs = plan_runs(suite, Choice(["scene"], ["fql"], seeds=[0, 1]), packaged_configs())
    write_plan(tmp_path, suite, runs)
    write_run(tmp_path / runs[0].folder, [])
    written = call_tql(tmp_path, "report", ".", "--output", "page.html")
    assert written.returncode == 0, written.stderr
    page = (tmp_path / "page.html").read_text()
    assert "scene/task_4/fql/seed_0 (evaluated at 0 of 400 updates); scene/task_4/fql/seed_1 (not started)" in page


def test_runs_without_a_suite_are_judged_by_their_last_evaluations(tmp_path: Path) -> None:
    for seed, values in enumerate(([0, 0.2, 0.4, 0.6, 0.8], [0, 0, 0, 0.5, 1])):
        write_run(tmp_path / "runs" / f"seed_{seed}", values)
    (row,) = summary_of([tmp_path / "runs"])["rows"]
    assert row["mean"] == pytest.approx((0.6 + 0.5) / 2)
    assert row["seeds"] == 2


def test_runs_without_an_evaluation_and_files_without_a_summary_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [])
    with pytest.raises(ReportError, match="expected runs with evaluations, found none"):
        summary_of([tmp_path / "run"])
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ReportError, match=r"x\.json: expected a summary with improvement, iqm"):
        summary_of([tmp_path / "x.json"])


def test_a_run_that_failed_after_its_evaluations_is_in_no_score(benchmark: Path) -> None:
    run = PlannedRun(**json.loads((benchmark / "benchmark.json").read_text())["runs"][0])
    record = {"state": "failed", "message": "it diverged", "arguments": run.arguments}
    (benchmark / run.folder / "outcome.json").write_text(json.dumps(record))
    unfinished = {each["run"]: each["state"] for each in summary_of([benchmark])["unfinished"]}
    assert unfinished[run.folder] == "failed"
