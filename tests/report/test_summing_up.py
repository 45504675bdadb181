"""Statistics of few, unfinished, unequal or many runs: the page claims no more than they show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.runs import make_run
from tql_lightning.report.charts import sections
from tql_lightning.report.methods import MAX_COMPARED, comparisons, group_methods, results
from tql_lightning.report.page import write_report
from tql_lightning.report.runs import read_runs
from tql_lightning.run.folder import METRICS_FILE

TASK = "Pendulum-v1"


def write_metrics(run: Path, key: str, values: dict[int, float]) -> None:
    rows = "".join(f"{update},{value}\n" for update, value in values.items())
    (run / METRICS_FILE).write_text(f"step,{key}\n{rows}")


def page_of(folder: Path) -> str:
    return write_report([folder], folder.parent / "page.html").read_text()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_a_curve_does_not_jump_between_runs_that_log_at_intervals_of_their_own(runs: Path) -> None:
    for seed, (interval, value) in enumerate(((10, 0.0), (20, 1.0))):
        updates = range(interval, 101, interval)
        write_metrics(make_run(runs / f"seed_{seed}", seed), "eval/return", dict.fromkeys(updates, value))
    ((_, (chart,)),) = sections(group_methods(read_runs([runs])), [TASK])
    (line,) = chart["lines"]
    assert line["x"] == [10, 20, 40, 60, 80, 100]
    assert line["y"] == [0.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert line["counts"] == [1, 2, 2, 2, 2, 2]


def test_a_curve_tells_how_many_runs_it_is_of_where_some_have_ended_or_left_a_value_out(runs: Path) -> None:
    left_out = {0: [], 1: [2], 2: [4, 5]}
    for seed, absent in left_out.items():
        values = {update: float(seed) for update in range(1, 6) if update not in absent}
        write_metrics(make_run(runs / f"seed_{seed}", seed), "eval/return", values)
    ((_, (chart,)),) = sections(group_methods(read_runs([runs])), [TASK])
    (line,) = chart["lines"]
    assert (line["x"], line["counts"], line["runs"]) == ([1, 2, 3, 4, 5], [3, 2, 3, 2, 2], 3)
    assert line["each"][1] == [1.0, None, 1.0, 1.0, 1.0]


def test_runs_without_updates_in_common_are_drawn_nevertheless(runs: Path) -> None:
    for seed in (0, 1):
        values = dict.fromkeys(range(1 + seed, 20, 2), float(seed))
        write_metrics(make_run(runs / f"seed_{seed}", seed), "eval/return", values)
    ((_, (chart,)),) = sections(group_methods(read_runs([runs])), [TASK])
    assert chart["lines"][0]["x"] == list(range(1, 20))


def test_one_run_of_each_task_has_no_interval_over_runs(runs: Path) -> None:
    tasks = [f"cube-task{number}" for number in (1, 2, 3)]
    for method, discount in (("tql", 0.99), ("plain", 0.9)):
        for number, task in enumerate(tasks):
            make_run(runs / method / task, 0, 0.3 * number, discount=discount, env_id=task)
    methods = group_methods(read_runs([runs]))
    together = results(methods, tasks, "success_rate")[0]
    assert (together.runs, together.over_runs) == (3, False)
    (pair,) = comparisons(methods, tasks, "success_rate")
    assert not pair.over_runs
    page = page_of(runs)
    assert "IQM of 3 runs<" in page
    assert "30 to 30" not in page
    assert "interval of width 0" not in page


def test_runs_that_were_never_evaluated_are_named_and_make_no_interval(runs: Path) -> None:
    for seed in (0, 1):
        make_run(runs / "tql" / f"seed_{seed}", seed, 0.5 + 0.1 * seed)
        unevaluated = make_run(runs / "plain" / f"seed_{seed}", seed, 0.3, discount=0.9)
    write_metrics(unevaluated, "train/td_loss", {200: 1.0})
    assert comparisons(group_methods(read_runs([runs])), [TASK], "success_rate") == []
    assert "Runs without an evaluation, which no score includes: 1 of plain." in page_of(runs)


def test_runs_that_have_not_come_to_their_end_are_named(runs: Path) -> None:
    whole, part = (make_run(runs / f"seed_{seed}", seed) for seed in (0, 1))
    assert "Not at their last update" not in page_of(runs)
    metrics = part / METRICS_FILE
    metrics.write_text("\n".join(metrics.read_text().splitlines()[:-1]) + "\n")
    assert "were stopped or failed: seed_1 (100 of 200)." in page_of(runs)
    whole_config = (whole / "config.yaml").read_text()
    (whole / "config.yaml").write_text(whole_config.replace("max_steps: 200", "max_steps: 200\n  log_every_n_steps: 0"))
    assert "were stopped or failed: seed_1 (100 of 200)." in page_of(runs)
    (whole / "config.yaml").write_text(whole_config)
    for run in (whole, part):  # metrics of the last 100 updates are not due
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("max_steps: 200", "max_steps: 200\n  log_every_n_steps: 150"))
    assert "Not at their last update" not in page_of(runs)


def test_a_collapse_without_a_target_is_in_the_headline(runs: Path) -> None:
    key = "train/attention_entropy/layer_1/value"
    for name, target, entropy in (("controlled", ",train/target_entropy/layer_1/value", 1.2), ("plain", "", 0.08)):
        run = make_run(runs / name)
        columns = f"step,{key},{key.replace('entropy', 'entropy_share')}{target}"
        (run / METRICS_FILE).write_text(f"{columns}\n200,{entropy},{entropy / 2}{',1.3' if target else ''}\n")
    page = page_of(runs)
    assert '<dd class="figure">4 %</dd><dd class="remark">0.08 nats, no target; layer 1, [VALUE]; plain</dd>' in page
    (runs / "plain" / METRICS_FILE).unlink()
    assert '60 %</dd><dd class="remark">1.2 nats, target 1.3; layer 1, [VALUE]; runs/controlled</dd>' in page_of(runs)


def test_a_single_episode_makes_no_interval(runs: Path) -> None:
    run = make_run(runs / "seed_0")
    (run / METRICS_FILE).write_text("step,eval/return,eval/return_low,eval/return_high\n10,-5,-5,-5\n")
    (result,) = results(group_methods(read_runs([runs])), [TASK], "return")
    assert (result.estimate, result.over_episodes) == ((-5.0, -5.0, -5.0), False)
    assert "interval of its episodes" not in page_of(runs)


def test_an_interval_without_width_is_explained(runs: Path) -> None:
    for seed in (0, 1, 2):
        make_run(runs / f"seed_{seed}", seed, 0.0)
    page = page_of(runs)
    assert "An interval of width 0" in page
    assert page.count('<span class="dot c0" style="left:0.0%">') == 1  # on a scale from 0 to 1


def test_a_certain_improvement_of_the_runs_at_hand_is_explained(runs: Path) -> None:
    for seed in (0, 1):
        make_run(runs / "tql" / f"seed_{seed}", seed, 0.5 + 0.1 * seed)
        make_run(runs / "plain" / f"seed_{seed}", seed, 0.1 + 0.1 * seed, discount=0.9)
    assert "An interval of width 0" in page_of(runs)


def test_many_methods_are_compared_with_the_best_alone(runs: Path) -> None:
    number = MAX_COMPARED + 1
    for method in range(number):
        for seed in (0, 1):
            make_run(runs / f"method_{method}" / f"seed_{seed}", seed, 0.1 * (method + 1), discount=0.9 + 0.01 * method)
    methods = group_methods(read_runs([runs]))
    assert len(comparisons(methods[1:], [TASK], "success_rate")) == MAX_COMPARED * (MAX_COMPARED - 1) / 2
    pairs = comparisons(methods, [TASK], "success_rate")
    assert [pair.method.label for pair in pairs] == [f"method_{number - 1}"] * (number - 1)
    assert f"With {number} methods, only pairs with" in page_of(runs)


def test_runs_come_in_the_order_of_their_numbers(runs: Path) -> None:
    for seed in (0, 2, 10):
        make_run(runs / f"seed_{seed}", seed)
    assert [run.name for run in read_runs([runs])] == ["seed_0", "seed_2", "seed_10"]
