"""A search: its ranges, what a trial trains, and the record of a real one that was stopped and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.test_table import RAW, write_run
from tests.benchmark.tiny import write_suite
from tests.command_line import TQL_COMMAND, call_tql, run_tql
from tql_lightning.benchmark.plan import Choice, plan_runs
from tql_lightning.benchmark.search import parse_space, summarise_search, vary
from tql_lightning.benchmark.suite import SuiteError, make_suite
from tql_lightning.benchmark.worker import Outcome, record
from tql_lightning.cli.configs import packaged_configs
from tql_lightning.report.table_formats import NONE, search_markdown
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
    assert text.splitlines()[2] == "| model.tau=0.2 | 80.0 | 60.0, 100.0 |"
    assert text.splitlines()[4] == f"| model.tau=0.3 | {NONE} | 90.0 |"
    assert "Best: model.tau=0.2, 80.0 [" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--search", "model.tau=uniform(0,1)", "--trials", "0"), "trials: expected at least 1, found 0"),
        (("--search", "model.tauu=uniform(0,1)"), "1 checks failed, nothing was run"),
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
