"""Checks every configuration, dataset and environment of a benchmark before anything runs."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from tql_lightning.benchmark.plan import PlannedRun
from tql_lightning.benchmark.suite import Suite
from tql_lightning.callbacks.observing import environment_of
from tql_lightning.cli.benchmark_scores import check_score, evaluations_of
from tql_lightning.cli.configs import resolve_configs
from tql_lightning.cli.errors import short_message
from tql_lightning.cli.lightning import TQLCLI
from tql_lightning.data.sources.ogbench import dataset_file, how_to_get
from tql_lightning.evaluation.envs import check_env, known_bounds
from tql_lightning.online.settings import Online

LOGGERS = ("lightning.fabric", "lightning.pytorch")


class ParsedFit(TQLCLI):
    """The command line of fit; builds its parts only when asked, and never trains."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Fit alone."""
        return {"fit": TQLCLI.subcommands()["fit"]}

    def instantiate_classes(self) -> None:
        """Builds nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Trains nothing."""

    def build(self) -> None:
        """Builds data, model and trainer as fit does."""
        super().instantiate_classes()


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, apart from task and seed.

    Attributes:
        runs: The runs, those of one task together.
        updates: Planned updates of each, online ones included.
        dataset: Settings of the first run's dataset.
        error: Message of a configuration that cannot be parsed, or None.
    """

    runs: Sequence[PlannedRun]
    updates: int
    dataset: Any
    error: str | None = None

    def first_of_tasks(self) -> list[PlannedRun]:
        """The first run of each task."""
        return list({run.task: run for run in reversed(self.runs)}.values())[::-1]

    @property
    def is_downloaded(self) -> bool:
        """Whether the dataset is OGBench's."""
        return (getattr(self.dataset, "init_args", None) or {}).get("domain") is not None

    def missing_datasets(self) -> list[str]:
        """Dataset files that are not there, with how to get each."""
        given = getattr(self.dataset, "init_args", None) or {}
        path = given.get("path")
        if path is not None and not Path(path).exists():
            known = Path(path).stem in gymnasium.registry
            return [f"{path}{f': tql collect {Path(path).stem} --output {path}' if known else ', data.dataset.path'}"]
        domain = given.get("domain")
        if domain is None:
            return []
        file = dataset_file(domain.partition("-singletask")[0], given.get("dataset_dir"))
        return [] if file.is_file() else [how_to_get(domain, file)]


def parse_groups(runs: Sequence[PlannedRun]) -> list[Group]:
    """Groups runs of one domain and method, and parses the configuration of each group once."""
    grouped: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs:
        grouped.setdefault((run.domain, run.method), []).append(run)
    groups = []
    for inside in grouped.values():
        try:
            fit = parse_fit(inside[0]).config["fit"]
            updates = fit.trainer.max_steps + Online(**fit.online).updates
            groups.append(Group(inside, updates, fit.data.dataset))
        except (Exception, SystemExit) as error:  # the parser raises many kinds of errors
            groups.append(Group(inside, 0, None, f"{inside[0].method} on {inside[0].domain}: {reason(error)}"))
    return groups


def check_groups(groups: Sequence[Group], suite: Suite) -> list[str]:
    """Builds dataset, model and trainer of every group, and makes every task's environment; returns what failed.

    Tasks of one domain share their configurations, so that each method is built for the first task alone.
    """
    problems = [group.error for group in groups if group.error]
    tasks: set[str] = set()
    environments: set[tuple[Any, ...]] = set()
    for group in groups:
        for index, run in enumerate([] if group.error else group.first_of_tasks()):
            if index and run.task in tasks:
                continue
            try:
                _check(run, suite, environments)
            except (Exception, SystemExit) as error:  # of any dataset, model or simulator
                problems.append(f"{run.method} on {run.task}: {reason(error)}")
            tasks.add(run.task)
    return list(dict.fromkeys(problems))


def _check(run: PlannedRun, suite: Suite, environments: set[tuple[Any, ...]]) -> None:
    with quietly():
        cli = parse_fit(run)
        cli.build()
        model, data = cli.model, cli.datamodule
        model.check_trainer(cli.trainer)
        data.setup("fit")
        own = data.dataset
        for each in evaluations_of(cli):
            played = (environment_of(each, data, each.env_id), own.observation_dim, own.action_dim)
            if (*played, each.max_episode_steps) not in environments:
                check_env(*played, known_bounds(own.action_low, own.action_high), each.max_episode_steps)
                environments.add((*played, each.max_episode_steps))
        check_score(cli, suite)


def parse_fit(run: PlannedRun, *more: str) -> ParsedFit:
    """The parsed command line of a run, whose folder is not written to."""
    before = sys.argv
    with quietly():
        try:
            sys.argv = ["tql", *resolve_configs(["fit", *run.arguments, *more], {"fit"})]
            return ParsedFit(sys.argv[1:])
        finally:
            sys.argv = before


@contextmanager
def quietly() -> Iterator[None]:
    """Silences what Lightning says about a trainer that it builds."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    try:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def reason(error: BaseException) -> str:
    """An error's message on one line."""
    text = short_message(error) or f"{type(error).__name__}: {error}"
    lines = [line for line in text.splitlines() if not line.startswith("(tql --help")]
    return " ".join(lines).removeprefix("tql: ")
