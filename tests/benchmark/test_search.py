"""A search: its ranges, what a trial trains, and the record of a real one that was stopped and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.test_table import RAW, write_run
from tests.benchmark.tiny import write_suite
from tests.command_line import TQL_COMMAND, call_tql, run_tql
from tql_lightning.benchmark.plan import Choice, plan_runs
from tql_lightning.benchmark.search import _episodes, _note, parse_space, settings_to_check, summarise_search, vary
from tql_lightning.benchmark.suite import SuiteError, make_suite
from tql_lightning.benchmark.worker import Outcome, record
from tql_lightning.cli.configs import packaged_configs
from tql_lightning.evaluation.checkpoint import write_evaluation
from tql_lightning.evaluation.rollout import RolloutResult
from tql_lightning.report.table_formats import search_markdown
from tql_lightning.run.folder import evaluation_file

SUITE = make_suite("mine", RAW)


def test_ranges_are_read() -> None:
    texts = {"a": "loguniform(1,1e3)", "b": "choice(mean, min)", "c": "randint(1, 5)", "d": " uniform(-1, 0.5)"}
    texts |= {"e": "choice([64,64],[32])", "f": "choice(true,null)"}
    assert parse_space(texts) == {
        "a": ("loguniform", [1, 1000.0]),
        "b": ("choice", ["mean", "min"]),
        "c": ("randint", [1, 5]),
        "d": ("uniform", [-1, 0.5]),
        "e": ("choice", ["[64,64]", "[32]"]),
        "f": ("choice", ["true", "null"]),
    }


@pytest.mark.parametrize(
    "text",
    [
        *("3", "normal(0,1)", "uniform(1)", "loguniform(a,b)", "uniform(1,2", "choice()", "uniform(5,1)"),
        *("uniform(1,1)", "loguniform(0,1)", "randint(1.5,3)", "uniform(0,1e999)"),
    ],
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(SuiteError, match=r"search: model\.tau: expected uniform, loguniform, randint, choice"):
        parse_space({"model.tau": text})


def test_a_trials_run_has_its_settings_in_command_and_folder() -> None:
    run = plan_runs(SUITE, Choice(["scene"], ["tql"], ["1m"], [2]), packaged_configs())[0]
    varied = vary(run, {"model.bc_coefficient": 12.345678, "model.target_aggregation": "min"})
    assert varied.folder == "scene/task_4/tql-1m,bc_coefficient=12.3457,target_aggregation=min/seed_2"
    assert list(varied.arguments[-2:]) == ["--model.bc_coefficient=12.3457", "--model.target_aggregation=min"]


def test_the_record_ranks_whole_trials_and_shows_what_few_episodes_find(tmp_path: Path) -> None:
    runs = plan_runs(SUITE, Choice(["scene"], ["tql"], ["1m"], [0, 1]), packaged_configs())
    trials = [{"model.tau": value} for value in (0.1, 0.2, 0.3)]
    finals = {0.1: (0.2, 0.4), 0.2: (0.6, 1.0), 0.3: (0.9,)}
    for settings in trials:
        for run, final in zip(runs, finals[settings["model.tau"]], strict=False):
            varied = vary(run, settings)
            write_run(tmp_path / varied.folder, [0.0, 0.0, final, final, final])
            record(varied, tmp_path, Outcome("finished"))
            file = evaluation_file(tmp_path / varied.folder, 400)
            file.parent.mkdir()
            file.write_text(json.dumps({"successes": [*[1.0] * round(10 * final), *[0.0] * round(10 - 10 * final)]}))
    found = summarise_search([(settings, runs) for settings in trials], SUITE, tmp_path)
    assert [trial["mean"] for trial in found["trials"]] == [pytest.approx(0.3), pytest.approx(0.8), None]
    assert found["best"]["settings"] == {"model.tau": 0.2}
    assert found["best"]["low"] <= 0.8 <= found["best"]["high"]
    one, both = found["curves"]
    assert (one["policies"], both["policies"]) == (1, 2)
    assert one["points"][-1][1] == pytest.approx(0.55, abs=0.05)
    assert both["points"][-1][1] == pytest.approx(0.8, abs=0.02)
    text = search_markdown({"metric": "success_rate", **found})
    assert text.splitlines()[2] == "| model.tau=0.2 | 80 | 60, 100 |"
    assert text.splitlines()[4] == "| model.tau=0.3 | unfinished | 90 |"
    assert "Best: model.tau=0.2, 80 [" in text


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("return", [10.0, 30.0]),
        ("length", [200.0, 100.0]),
        ("normalized_score", [10.0, 110.0]),
        ("return_low", []),
    ],
)
def test_the_budget_curve_is_in_the_unit_of_the_metric(metric: str, expected: list[float], tmp_path: Path) -> None:
    (run,) = plan_runs(SUITE, Choice(["scene"], ["fql"], seeds=[0]), packaged_configs())
    result = RolloutResult(np.array([10.0, 30.0]), np.array([200.0, 100.0]), None)
    folder = tmp_path / run.folder
    folder.mkdir(parents=True)
    write_evaluation(folder, 400, "Pendulum-v1", 0, result, result.summary((8.0, 28.0)))
    assert _episodes(run, metric, tmp_path) == pytest.approx(expected)


def test_a_stopped_search_is_in_the_report_with_its_trials_so_far(tmp_path: Path) -> None:
    runs = plan_runs(SUITE, Choice(["scene"], ["tql"], ["1m"], [0, 1]), packaged_configs())
    note = partial(_note, runs, SUITE, {"model.tau": ("uniform", [0.0, 1.0])}, 5, tmp_path)
    (tmp_path / "tune").mkdir()
    note([])
    empty = call_tql(tmp_path, "report", ".", "--format", "md")
    assert "Unfinished search: 0 of 5 trials have a score so far." in empty.stdout, empty.stderr
    for value, seeds in ((0.25, 2), (0.5, 1)):
        note([{"model.tau": value}])
        for run in runs[:seeds]:
            varied = vary(run, {"model.tau": value})
            write_run(tmp_path / varied.folder, [0, 0, value, value, value])
            record(varied, tmp_path, Outcome("finished"))
    note([{"model.tau": 0.5000000001}])  # of the same six digits
    text = call_tql(tmp_path, "report", ".", "--format", "md").stdout
    assert "Unfinished search: 1 of 5 trials have a score so far. The command that began it continues it." in text
    assert "| model.tau=0.25 | 25 | 25, 25 |" in text
    assert text.count("| model.tau=0.5 | unfinished | 50 |") == 1
    assert "Unfinished, and in no score: scene/task_4/tql-1m,tau=0.5/seed_1 (not started)." in text
    note([], finished=True)
    assert "Unfinished search" not in call_tql(tmp_path, "report", ".", "--format", "md").stdout


def test_each_value_of_a_choice_and_both_ends_of_a_range_are_checked() -> None:
    space = parse_space({"a": "choice(x,y,z)", "b": "randint(1,4)", "c": "uniform(0,10)", "d": "choice(1)"})
    assert settings_to_check(space) == [
        {"a": "x", "b": 1, "c": 0, "d": 1},
        {"a": "y", "b": 1, "c": 0, "d": 1},
        {"a": "z", "b": 1, "c": 0, "d": 1},
        {"a": "x", "b": 3, "c": 0, "d": 1},
        {"a": "x", "b": 1, "c": 9.99, "d": 1},
    ]


SEARCH = ("--methods", "tql", "--search", "model.tau=uniform(0.1,1)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cpus", "0"), "cpus: expected a number above 0, found 0.0"),
        (("--cpus", "-1"), "cpus: expected a number above 0, found -1.0"),
        (("--gpus", "-0.5"), "gpus: expected 0, a part of 1, or a whole number, found -0.5"),
        (("--gpus", "1.5"), "gpus: expected 0, a part of 1, or a whole number, found 1.5"),
        (("--retries", "-1"), "retries: expected at least 0, found -1"),
        (("--seeds", "-1"), "seeds: expected different numbers from 0 to 4294967295, found [-1]"),
        (("--seeds", "4294967296"), "seeds: expected different numbers from 0 to 4294967295, found [4294967296]"),
        ((*SEARCH, "--trials", "0"), "trials: expected at least 1, found 0"),
        ((*SEARCH, "--search-seeds", "0"), "search_seeds: expected at least 1, found 0"),
        ((*SEARCH, "--engine", "serial"), "search: expected only with --engine ray, found serial"),
        (("--address", "auto", "--engine", "serial"), "address: expected only with --engine ray, found serial"),
        (("--slurm", "time=1"), "slurm: expected only with --engine slurm, found ray"),
        ((*SEARCH, "--commands"), "commands: expected none with --search, whose settings are chosen while it runs"),
        (("--search", "model.tau=uniform(0,1)"), "search: expected the runs of one method, found tql, careful"),
        ((*SEARCH[:3], "seed_everything=randint(0,9)"), "seed_everything: expected no such setting, which differs"),
        (("--set", "trainer.default_root_dir=x"), "trainer.default_root_dir: expected no such setting, which differs"),
        ((*SEARCH[:3], "model.tau=uniform(1,0)"), "search: model.tau: expected uniform, loguniform, randint, choice"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry"])
def test_options_that_cannot_be_are_refused_before_any_work(
    options: Sequence[str], message: str, dry: Sequence[str], tmp_path: Path
) -> None:
    write_suite(tmp_path)
    refused = call_tql(tmp_path, "benchmark", "suite.yaml", "--output", "out", *options, *dry)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert message in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--search", "model.tauu=uniform(0,1)"), "1 checks failed, nothing was run"),
        (("--search", "model.tau=choice(0.1,much)"), "tql,tau=much on toy: "),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_it_begins(
    options: Sequence[str], message: str, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    write_suite(tmp_path)
    refused = call_tql(tmp_path, "benchmark", "suite.yaml", "--methods", "tql", "--output", "out", *options)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (tmp_path / "out" / "tune").exists()


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("moment", ["tune/1", "tune/1/tuner.pkl", "tune/1/experiment_state*"])
def test_a_search_that_is_killed_before_its_first_trial_has_ended_can_be_continued(moment: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    write_suite(tmp_path)
    command = ("benchmark", "suite.yaml", "--methods", "tql", "--output", "out", "--trials", "1", "--search-seeds", "1")
    command += ("--search", "model.bc_coefficient=uniform(1,100)")
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen([TQL_COMMAND, *command], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
        while not list((tmp_path / "out").glob(moment)):
            assert driver.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert not list((tmp_path / "out").glob("toy/*/*/outcome.json"))
    continued = run_tql(tmp_path, *command)
    assert continued.returncode == 0, continued.stderr
    (trial,) = json.loads((tmp_path / "out" / "search.json").read_text())["trials"]
    assert trial["mean"] is not None


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_search_by_ray_tune_and_optuna_continues_and_ends_in_its_record(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    write_suite(tmp_path)
    (tmp_path / "out" / "tune" / "2").mkdir(parents=True)  # of a search that was killed before its first trial
    command = ("benchmark", "suite.yaml", "--methods", "tql", "--output", "out", "--trials", "3", "--search-seeds", "2")
    command += ("--search", "model.bc_coefficient=loguniform(1,100)")
    ran = run_tql(tmp_path, *command)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "out" / "search.json").read_text())
    values = [trial["settings"]["model.bc_coefficient"] for trial in found["trials"]]
    assert len(set(values)) == 3
    assert all(1 <= value <= 100 for value in values)
    assert found["best"]["mean"] == max(np.mean(trial["scores"]) for trial in found["trials"])
    assert "Tuning-budget curve" in ran.stdout

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("toy/*/*/outcome.json")}
    assert len(written) == 3 * 2
    again = run_tql(tmp_path, *command)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("toy/*/*/outcome.json")} == written
    assert json.loads((tmp_path / "out" / "search.json").read_text()) == found

    more = run_tql(tmp_path, *(("4" if word == "3" else word) for word in command))
    assert more.returncode == 0, more.stderr
    grown = json.loads((tmp_path / "out" / "search.json").read_text())["trials"]
    assert len(grown) == 4
    assert all(trial in grown for trial in found["trials"])
    assert written.items() <= {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("toy/*/*/outcome.json")}.items()

    fewer = run_tql(tmp_path, *command)
    assert fewer.returncode == 2
    assert "trials: expected at least the 4 that" in fewer.stderr
    other = run_tql(tmp_path, *command[:-1], "model.bc_coefficient=uniform(1,100)")
    assert other.returncode == 2
    assert "search: expected the ranges that" in other.stderr
