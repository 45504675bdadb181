"""A suite becomes a plan: which runs, where, by which commands; and what is wrong with a suite."""

from __future__ import annotations

import shlex
from pathlib import Path
from textwrap import dedent
from typing import Any

import gymnasium
import pytest
import yaml
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from tests.benchmark.tiny import write_suite
from tests.command_line import call_tql
from tql_lightning.benchmark import suite as suite_module
from tql_lightning.benchmark.plan import Choice, plan_runs, read_plan, write_plan
from tql_lightning.benchmark.suite import SuiteError, make_suite, read_suite
from tql_lightning.cli.benchmark_checks import parse_groups
from tql_lightning.cli.configs import packaged_configs, packaged_suites
from tql_lightning.evaluation.envs import reports_success

RAW = {
    "metric": "success_rate",
    "domains": {"cube-double": {"config": "ogbench/cube-double", "tasks": [1, 2]}},
    "methods": {"tql": {"sizes": ["0.4m", "26m"]}, "fql": {"configs": ["method/fql"]}},
    "settings": {"trainer.max_steps": 10},
    "exceptions": [{"method": "tql", "size": "26m", "settings": {"model.tau": 0.1}}],
}


def test_a_plan_has_a_folder_for_everything_that_varies() -> None:
    suite = make_suite("mine", RAW)
    runs = plan_runs(suite, Choice(settings={"model.discount": "0.995"}), packaged_configs())
    assert len(runs) == 2 * 3 * 3
    assert len({run.folder for run in runs}) == len(runs)
    assert runs[-1].folder == "cube-double/task_2/fql,discount=0.995/seed_2"
    tuned = [run for run in runs if "--model.tau=0.1" in run.arguments]
    assert {(run.base, run.size) for run in tuned} == {("tql", "26m")}
    assert shlex.split(runs[0].line(Path("out"))) == [
        *("tql", "fit", "--config", "ogbench/cube-double", "--config", "size/0.4m", "--trainer.max_steps=10"),
        *("--model.discount=0.995", "--data.dataset.task=1", "--seed_everything=0"),
        "--trainer.default_root_dir=out/cube-double/task_1/tql-0.4m,discount=0.995/seed_0",
    ]


def test_a_choice_takes_parts_of_a_suite_and_packaged_methods_and_variants() -> None:
    suite = make_suite("mine", RAW)
    choice = Choice(["cube-double/task_2"], ["tql", "iql", "qk_norm"], ["1m"], [7])
    runs = plan_runs(suite, choice, packaged_configs())
    assert [run.folder for run in runs] == [
        f"cube-double/task_2/{method}/seed_7" for method in ("tql-1m", "iql", "qk_norm-1m")
    ]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(tasks=["cube-double/task_3"]), "tasks: .*cube-double/task_2"),
        (Choice(tasks=["cube-double/task_None"]), "there is: cube-double, cube-double/task_1, cube-double/task_2$"),
        (Choice(methods=["fql", "iql"], sizes=["1m"]), "sizes: expected none, since none of fql, iql has sizes"),
        (Choice(methods=["fqll"]), "methods: .*fql"),
        (Choice(sizes=["2m"]), "configuration size/2m: .*size/26m"),
        (Choice(seeds=[1, 1]), "seeds: expected different"),
        (Choice(settings={"data.dataset.task": "2"}), "data.dataset.task: expected no such setting, .*; use --tasks"),
        (Choice(sizes=["1m", "1m"]), "found cube-double/task_1/tql-1m/seed_0 twice; give each task"),
    ],
)
def test_an_unknown_choice_names_what_there_is(choice: Choice, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        plan_runs(make_suite("mine", RAW), choice, packaged_configs())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": "return"}, "unknown metrics; known are .*metric"),
        ({"domains": {}}, "domains: expected one or more"),
        ({"methods": {"tql": {"size": "26m"}}}, r"methods\.tql: unknown size"),
        ({"protocol": "first"}, "protocol: expected last_three, last, best, found 'first'"),
        ({"seeds": ["a"]}, "seeds: expected a list of whole numbers"),
        ({"seeds": [True]}, "seeds: expected a list of whole numbers"),
        ({"configs": [3]}, "configs: expected a list of names"),
        ({"domains": {"a": {"config": 3}}}, r"domains\.a: config: expected text, found 3"),
        ({"domains": {"a": {"tasks": ["x"]}}}, r"domains\.a: tasks: expected a list of whole numbers"),
        ({"exceptions": 3}, "exceptions: expected a list of settings by name, found 3"),
        ({"exceptions": [{"method": "tqk", "settings": {}}]}, r"exceptions\[0\].method: expected one of tql, fql"),
        ({"exceptions": [{"domain": ["a"], "settings": {}}]}, r"exceptions\[0\].domain: expected one of cube-double"),
        ({"published": [{"method": "tql"}]}, r"published\[0\]: missing scores, source"),
    ],
)
def test_a_mistake_in_a_suite_names_its_place(change: dict[str, object], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        make_suite("mine", RAW | change)


def test_keys_whose_parts_a_user_took_away_count_as_left_out() -> None:
    suite = make_suite("mine", RAW | {"published": None, "exceptions": None, "domains": {"pendulum": None}})
    assert [run.folder for run in plan_runs(suite, Choice(None, ["fql"], None, [0]), packaged_configs())] == [
        "pendulum/fql/seed_0"
    ]


def test_a_configuration_that_is_nowhere_is_told_with_the_folder_that_was_looked_in() -> None:
    suite = make_suite("mine", RAW | {"configs": ["nowhere.yaml"]})
    with pytest.raises(SuiteError, match=rf"no such file in {Path.cwd()}, .*there is: .*quickstart"):
        plan_runs(suite, Choice(), packaged_configs())


def test_the_suite_that_the_documentation_explains_is_one() -> None:
    text = (suite_module.__doc__ or "").partition("::\n")[2]
    suite = make_suite("explained", yaml.safe_load(dedent(text)))
    assert (list(suite.methods), len(suite.exceptions), len(suite.published)) == (["tql", "fql"], 1, 1)


@pytest.mark.parametrize("name", packaged_suites())
def test_a_packaged_suite_plans_runs_whose_configurations_there_are(name: str) -> None:
    suite = read_suite(name, packaged_suites())
    runs = plan_runs(suite, Choice(), packaged_configs())
    assert len(runs) == len({run.folder for run in runs}) > 0
    tasks = {run.task for run in runs} | {run.domain for run in runs} | {"all"}
    methods = {run.base for run in runs}
    for published in suite.published:
        assert published["scores"].keys() <= tasks
    assert {published["method"] for published in suite.published} & methods or not suite.published


def test_a_second_plan_adds_to_the_first_and_one_of_another_suite_is_refused(tmp_path: Path) -> None:
    suite = make_suite("mine", RAW)
    for seeds in ([0], [0, 1]):
        planned = write_plan(tmp_path, suite, plan_runs(suite, Choice(seeds=seeds), packaged_configs()))
    assert len(planned) == 2 * 3 * 2
    again, runs = read_plan(tmp_path)
    assert (again, runs) == (suite, planned)
    with pytest.raises(SuiteError, match=r"holds a benchmark of suite mine, found yours; choose another --output"):
        write_plan(tmp_path, make_suite("yours", RAW), runs)


def test_commands_are_printed_and_nothing_is_written(tmp_path: Path) -> None:
    write_suite(tmp_path)
    before = sorted(tmp_path.iterdir())
    printed = call_tql(tmp_path, "benchmark", "suite.yaml", "--commands", "--seeds", "3", "--methods", "tql")
    assert (printed.returncode, sorted(tmp_path.iterdir())) == (0, before), printed.stderr
    assert printed.stdout.startswith("tql fit --config tiny.yaml ")
    assert "--trainer.default_root_dir=runs/benchmark/suite/toy/tql/seed_3" in printed.stdout


@pytest.mark.slow
def test_a_dry_run_names_missing_files_of_ogbench_and_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ogbench")
    monkeypatch.setenv("OGBENCH_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TQL_OGBENCH_URL", "http://mirror.local/ogbench")
    planned = call_tql(tmp_path, "benchmark", "laptop", "--dry-run", "--methods", "bc", "--seeds", "0")
    file = tmp_path / "cube-single-play-v0.npz"
    assert f"missing: {file}: fetch it where there is a network, or collect one with:\n" in planned.stdout
    assert f"\ntql collect cube-single --transitions 100000 --output {file}\n" in planned.stdout
    assert "downloaded from http://mirror.local/ogbench before anything runs; TQL_OGBENCH_URL sets" in planned.stdout
    (line,) = [line.split() for line in planned.stdout.splitlines() if line.startswith("cube-single ")]
    assert (line[2:4], 0 < float(line[4]) < 60) == (["2", "12,000"], True)


def test_every_check_that_fails_is_told_and_nothing_runs(tmp_path: Path) -> None:
    methods = {
        "one": {"settings": {"model.tau": "much"}},
        "two": {"settings": {"model.critic.hidden_dim": 33}},
        "three": {"settings": {"data.dataset": "gone.npz", "data.dataset.env_id": None}},
        "good": None,
    }
    write_suite(tmp_path, methods=methods)
    refused = call_tql(tmp_path, "benchmark", "suite.yaml", "--engine", "serial", "--output", "out", "--seeds", "0")
    assert refused.returncode == 2
    assert "3 checks failed, nothing was run" in refused.stderr
    for method, said in (("one", "tau"), ("two", "33"), ("three", "gone.npz")):
        (line,) = [line for line in refused.stderr.splitlines() if line.startswith(f"- {method} on toy")]
        assert said in line
    assert read_plan(tmp_path / "out")[1] == [], "reports name no run that was refused"
    assert not list((tmp_path / "out").glob("**/config.yaml"))


def test_a_dry_run_estimates_hours_and_names_missing_datasets(tmp_path: Path) -> None:
    missing = {"settings": {"data.dataset": "tql_lightning.data.sources.npz.load_npz", "data.dataset.path": "gone.npz"}}
    collectable = {"settings": {**missing["settings"], "data.dataset.path": "Pendulum-v1.npz"}}
    toy = {"data.dataset": "tests.toy.toy_dataset"}
    write_suite(
        tmp_path,
        settings={},
        methods={
            "odd": {"settings": toy | {"model.critic.hidden_dim": 33}},
            "tql": {"settings": toy | {"online.steps": 20}},
            "x": missing,
            "y": collectable,
        },
    )
    planned = call_tql(tmp_path, "benchmark", "suite.yaml", "--dry-run", "--seeds", "0")
    assert planned.returncode == 0, planned.stderr
    assert "4 runs in runs/benchmark/suite (0 finished)" in planned.stdout
    assert "cannot run: odd on toy: " in planned.stdout
    (line,) = [line.split() for line in planned.stdout.splitlines() if line.startswith("toy ") and " tql " in line]
    assert line[2:4] == ["1", "35"], "15 offline and 20 online updates"
    assert 0 < float(line[4]) < 60
    assert "missing: gone.npz, data.dataset.path\n" in planned.stdout
    assert "missing: Pendulum-v1.npz: tql collect Pendulum-v1 --output Pendulum-v1.npz\n" in planned.stdout
    (line,) = [line.split() for line in planned.stdout.splitlines() if line.startswith("toy ") and " y " in line]
    assert 0 < float(line[4]) < 60, "measured on random transitions"
    assert not (tmp_path / "runs").exists()


UPDATES = {"quickstart": 2_400, "laptop": 12_000}  # of a suite's runs; 1,000,000 of the others'


@pytest.mark.slow
@pytest.mark.parametrize("name", packaged_suites())
def test_every_configuration_of_a_packaged_suite_is_understood(name: str) -> None:
    runs = plan_runs(read_suite(name, packaged_suites()), Choice(seeds=[0]), packaged_configs())
    groups = parse_groups(runs)
    assert [group.error for group in groups if group.error] == []
    assert {group.updates for group in groups} == {UPDATES.get(name, 1_000_000)}


NO_CSV = {"trainer.logger": False}
NO_EVALUATIONS = {"trainer.callbacks": "tql_lightning.callbacks.throughput.Throughput"}
FEW = {"trainer.max_steps": 9}  # and an evaluation each 5


@pytest.mark.parametrize("option", ["--engine=serial", "--dry-run"])
def test_a_score_that_no_run_will_have_is_told_before_anything_runs(option: str, tmp_path: Path) -> None:
    methods = {"odd": None, "blind": {"settings": NO_EVALUATIONS}, "unlogged": {"settings": NO_CSV}}
    write_suite(tmp_path, metric="retrun", methods=methods, seeds=[0])
    told = call_tql(tmp_path, "benchmark", "suite.yaml", "--output", "out", option)
    for message in (
        "odd on toy: metric: expected a figure of the run's evaluations, found retrun; there are return, length\n",
        "blind on toy: metric: expected a figure of the run's evaluations, found retrun; there are none: add Rollout",
        "unlogged on toy: trainer.logger: expected one that writes metrics.csv into the run's folder",
    ):
        assert message in (told.stdout if option == "--dry-run" else told.stderr)
    assert not list((tmp_path / "out").glob("**/config.yaml"))


def test_too_few_evaluations_for_the_protocol_are_told_before_anything_runs(tmp_path: Path) -> None:
    write_suite(tmp_path, methods={"tql": {"settings": FEW}}, seeds=[0])
    told = call_tql(tmp_path, "benchmark", "suite.yaml", "--dry-run")
    assert "protocol: last_three needs 3 evaluations after the first update, found 2: 9 updates" in told.stdout


@pytest.mark.parametrize("reports", [True, False])
def test_an_environment_reports_success_where_its_infos_do(reports: bool) -> None:
    class Reporting(PendulumEnv):
        def step(self, action: Any) -> tuple[Any, ...]:
            *found, info = super().step(action)
            return *found, info | ({"success": False} if reports else {})

    gymnasium.register(f"Reporting{reports}-v0", entry_point=Reporting, max_episode_steps=5)
    assert reports_success(f"Reporting{reports}-v0") is reports


def test_an_environment_that_fails_does_not_tell_whether_it_reports_success() -> None:
    assert reports_success("Gone-v0") is None
