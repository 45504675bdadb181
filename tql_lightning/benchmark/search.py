"""A search over settings by Ray Tune and Optuna, on a suite's score over seeds."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tql_lightning.benchmark.plan import PlannedRun, write_plan
from tql_lightning.benchmark.ray_engine import Resources, ray_cluster
from tql_lightning.benchmark.suite import Suite, SuiteError
from tql_lightning.benchmark.worker import Job, execute, outcome_of
from tql_lightning.report.budget import SHOWN_PULLS, budget_curve
from tql_lightning.report.protocol import score_of
from tql_lightning.report.statistics import mean_over_tasks
from tql_lightning.run.folder import METRICS_FILE, SEARCH_FILE, evaluation_files
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.run.naming import method_name, run_folder
from tql_lightning.system.files import write_text_whole
from tql_lightning.trust.bounded import read_json, read_text

TUNE_FOLDER = "tune"  # Ray Tune's state, in the benchmark's folder, by number of trials
SPACE_FILE = "space.json"  # beside it: the ranges that are searched
NEARLY_ALL = 0.999  # of a range
KINDS = ("uniform", "loguniform", "randint", "choice")
PART = re.compile(r"(?:[^,\[\]]|\[[^\]]*\])+")  # of a range's arguments: a list such as [64,64] is one
SPACE = re.compile(r"(\w+)\((.*)\)")
EPISODE_FIGURES = {"success_rate": "successes", "return": "returns", "length": "lengths"}


def parse_space(settings: Mapping[str, str]) -> dict[str, tuple[str, list[Any]]]:
    """Ranges by setting: "loguniform(1,1000)" is ("loguniform", [1, 1000]).

    Raises:
        SuiteError: A range is none of uniform, loguniform, randint and choice, or has other arguments.
    """
    space = {}
    for key, text in settings.items():
        match = SPACE.fullmatch(text.strip())
        kind = match[1] if match else ""
        values = [_value(part) for part in PART.findall(match[2])] if match else []
        if kind not in KINDS or not (values if kind == "choice" else _is_range(kind, values)):
            raise SuiteError(
                f"search: {key}: expected {', '.join(KINDS)} such as loguniform(1,1000), from a lower to a "
                f"higher number (loguniform from above 0, randint whole), found {text}"
            )
        space[key] = (kind, values)
    return space


def _is_range(kind: str, values: Sequence[Any]) -> bool:
    types = (int,) if kind == "randint" else (int, float)
    if len(values) != 2 or any(type(value) not in types for value in values):
        return False
    low, high = values
    return bool(low < high < float("inf") and low > (0 if kind == "loguniform" else float("-inf")))


def _value(text: str) -> Any:
    """The number that a text is, or else the text, such as a name or a list, which the parser of fit reads."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        value = None
    return value if type(value) in (int, float) else text.strip()


def settings_to_check(space: Mapping[str, tuple[str, list[Any]]]) -> list[dict[str, object]]:
    """Settings in which each value of a choice, and both ends of each range, come up; the first values come first."""
    begin: dict[str, object] = {key: values[0] for key, (_, values) in space.items()}
    further = [
        (key, value)
        for key, (kind, values) in space.items()
        for value in (values[1:] if kind == "choice" else [_highest(kind, *values)])
    ]
    return [begin, *(begin | {key: value} for key, value in further if value != begin[key])]


def _highest(kind: str, low: float, high: float) -> float:
    """A value near the end of a range, which itself is never drawn."""
    return high - 1 if kind == "randint" else low + NEARLY_ALL * (high - low)


def _texts(settings: Mapping[str, object]) -> dict[str, str]:
    return {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in settings.items()}


def vary(run: PlannedRun, settings: Mapping[str, object]) -> PlannedRun:
    """The run with further settings, which its method's name and its folder hold."""
    texts = _texts(settings)
    method = method_name([run.method], texts)
    number = run.task.partition("/task_")[2] or None
    folder = run_folder("", run.domain, number, method, str(run.seed))[1:]
    arguments = [*run.arguments, *(f"--{key}={value}" for key, value in texts.items())]
    return replace(run, method=method, folder=folder, arguments=arguments)


def search(
    runs: Sequence[PlannedRun],
    suite: Suite,
    space: Mapping[str, tuple[str, list[Any]]],
    trials: int,
    job: Job,
    resources: Resources,
) -> dict[str, Any]:
    """Runs, or continues, a search; keeps its record and its plan in the benchmark's folder and returns the record.

    Each trial trains all the runs, one after the other, with settings that Optuna proposes. A search that has ended
    can be continued with more trials. Optuna then starts from the settings that were tried, and repeats no run. The
    record is written when a trial begins and after each of its runs, so that a search that is stopped has one.

    Args:
        runs: Runs of one method, over tasks and seeds.
        suite: The suite, whose metric and protocol make the score.
        space: Ranges of settings; see `parse_space`.
        trials: Number of trials.
        job: What the runs share.
        resources: What Ray gives a trial.

    Raises:
        SuiteError: The folder holds a search of other ranges, or of more trials, or a damaged record.
    """
    folder = job.output / TUNE_FOLDER
    _require_same_space(folder / SPACE_FILE, space)
    begun = sorted(int(each.name) for each in folder.iterdir() if each.name.isdecimal())
    if begun and begun[-1] > trials:
        raise SuiteError(f"trials: expected at least the {begun[-1]} that {folder} has begun, found {trials}")
    note = partial(_note, runs, suite, space, trials, job.output)
    note([])
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    with ray_cluster(resources.address):
        from optuna.samplers import TPESampler
        from ray import tune
        from ray.tune.search.optuna import OptunaSearch

        def trial(settings: dict[str, Any]) -> None:
            with FileLock(folder / f"{_digest(settings)}.lock"):  # proposed twice, they are trained once
                note([settings])
                for run in runs:
                    varied = vary(run, settings)
                    outcome = execute(varied, job)
                    note([settings])
                    if outcome.state != "finished":
                        raise RuntimeError(f"{varied.folder}: {outcome.state}: {outcome.message}")
            tune.report({"score": float(np.mean(scores_of(runs, settings, suite, job.output)))})

        trainable = tune.with_resources(trial, {"cpu": job.cpus, "gpu": resources.gpus})
        ranges = {
            key: getattr(tune, kind)(*([values] if kind == "choice" else values))
            for key, (kind, values) in space.items()
        }
        path = folder / str(trials)
        if tune.Tuner.can_restore(str(path)):
            tuner = tune.Tuner.restore(
                str(path), trainable=trainable, param_space=ranges, resume_unfinished=True, restart_errored=True
            )
        else:
            # A search that was killed before its first trial left a folder without a state.
            saved = [str(folder / str(number)) for number in begun if tune.Tuner.can_restore(str(folder / str(number)))]
            tried = []
            if saved:
                earlier = tune.Tuner.restore(saved[-1], trainable=trainable).get_results()
                tried = [dict(earlier[index].config or {}) for index in range(len(earlier))]
            algorithm = OptunaSearch(
                sampler=TPESampler(seed=len(tried)), metric="score", mode="max", points_to_evaluate=tried or None
            )
            tuner = tune.Tuner(
                trainable,
                param_space=ranges,
                tune_config=tune.TuneConfig(metric="score", mode="max", search_alg=algorithm, num_samples=trials),
                run_config=tune.RunConfig(
                    name=str(trials),
                    storage_path=str(folder),
                    failure_config=tune.FailureConfig(max_failures=resources.retries),
                    verbose=0,
                ),
            )
        tuner.fit()
    return note([], finished=True)


def _note(
    runs: Sequence[PlannedRun],
    suite: Suite,
    space: Mapping[str, tuple[str, list[Any]]],
    trials: int,
    output: Path,
    begun: Sequence[Mapping[str, object]],
    finished: bool = False,
) -> dict[str, Any]:
    """Brings the record and the plan of a search up to date, with the settings of trials that have begun."""
    file = output / SEARCH_FILE
    with FileLock(output / TUNE_FOLDER / f"{SEARCH_FILE}.lock"):
        try:
            known = [each["settings"] for each in read_json(file)["trials"]] if file.is_file() else []
            tried = {_digest(settings): settings for settings in [*known, *begun]}
            ordered = sorted(tried.values(), key=lambda each: json.dumps(each, sort_keys=True))
            varied = [vary(run, settings) for settings in ordered for run in runs]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise SuiteError(f"{file}: expected the record of this search, found {error}; remove it") from error
        write_plan(output, suite, varied)
        record = {
            "metric": suite.metric,
            "protocol": suite.protocol,
            "space": {key: list(each) for key, each in space.items()},
            "planned": trials,
            "finished": finished,
        }
        record |= summarise_search([(settings, runs) for settings in ordered], suite, output)
        write_text_whole(file, json.dumps(record, indent=1) + "\n")
    return record


def _digest(settings: Mapping[str, object]) -> str:
    return sha256(json.dumps(_texts(settings), sort_keys=True).encode()).hexdigest()[:16]


def _require_same_space(path: Path, space: Mapping[str, tuple[str, list[Any]]]) -> None:
    """Keeps the ranges of a search in its folder, and refuses others in the same."""
    text = json.dumps({key: list(each) for key, each in sorted(space.items())}, indent=1) + "\n"
    if path.exists() and read_text(path) != text:
        raise SuiteError(f"search: expected the ranges that {path} holds, found others; choose another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_whole(path, text)


def scores_of(runs: Sequence[PlannedRun], settings: Mapping[str, object], suite: Suite, output: Path) -> list[float]:
    """Scores of a trial's finished runs."""
    found = []
    for run in runs:
        varied = vary(run, settings)
        outcome = outcome_of(varied, output)
        if outcome is not None and outcome.state == "finished":
            updates, values = read_metrics(output / varied.folder / METRICS_FILE)[f"eval/{suite.metric}"]
            after = [value for update, value in zip(updates, values, strict=True) if update > 0]
            score = score_of(after, suite.protocol)
            found += [] if score is None else [score]
    return found


def summarise_search(
    trials: Sequence[tuple[Mapping[str, object], Sequence[PlannedRun]]], suite: Suite, output: Path
) -> dict[str, Any]:
    """Every trial with its scores, the best with its interval, and the tuning-budget curves of complete trials."""
    listed: list[dict[str, Any]] = []
    episodes = []
    for settings, runs in trials:
        scores = scores_of(runs, settings, suite, output)
        whole = len(scores) == len(runs)
        listed.append({"settings": dict(settings), "scores": scores, "mean": float(np.mean(scores)) if whole else None})
        if whole:
            episodes.append([each for run in runs for each in _episodes(vary(run, settings), suite.metric, output)])
    complete = [each for each in listed if each["mean"] is not None]
    complete.sort(key=lambda each: each["mean"], reverse=True)
    best = None
    if complete:
        interval = mean_over_tasks([complete[0]["scores"]])
        several = len(complete[0]["scores"]) > 1
        best = complete[0] | {"low": interval.low if several else None, "high": interval.high if several else None}
    counts = sorted({2**power for power in range(10) if 2**power <= len(episodes)} | ({len(episodes)} - {0}))
    curves = [] if not all(episodes) else [_curve(episodes, count) for count in counts]
    return {"trials": listed, "best": best, "curves": curves}


def _curve(episodes: Sequence[Sequence[float]], policies: int) -> dict[str, Any]:
    curve = budget_curve(episodes, policies, max(SHOWN_PULLS))
    shown = [[pull, *(float(each) for each in curve[:, pull - 1])] for pull in SHOWN_PULLS]
    return {"policies": policies, "points": shown}


def _episodes(run: PlannedRun, metric: str, output: Path) -> list[float]:
    """Scores of the episodes of a run's last evaluation; none where the metric is of all episodes alone."""
    files = evaluation_files(output / run.folder)
    if not files:
        return []
    evaluation = read_json(files[max(files)])
    if metric == "normalized_score":  # grows with the return as its standard error does
        summary = evaluation["summary"]
        slope = summary[f"{metric}_stderr"] / summary["return_stderr"] if summary["return_stderr"] > 0 else 0.0
        return [summary[metric] + slope * (value - summary["return"]) for value in evaluation["returns"]]
    return [float(value) for value in evaluation.get(EPISODE_FIGURES.get(metric, "")) or ()]
