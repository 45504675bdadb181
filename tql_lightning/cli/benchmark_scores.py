"""Checks before anything runs that the runs of a benchmark will have the score that its suite compares."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from tql_lightning.benchmark.suite import Suite
from tql_lightning.callbacks.rollout_evaluation import SUFFIXES, RolloutEvaluation
from tql_lightning.cli.lightning import TQLCLI
from tql_lightning.report.protocol import LAST_THREE
from tql_lightning.training.stock_callbacks import logged_keys, may_log


def evaluations_of(cli: TQLCLI) -> list[RolloutEvaluation]:
    """The callbacks of a built command line that evaluate."""
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    return [each for each in callbacks if isinstance(each, RolloutEvaluation)]


def check_score(cli: TQLCLI, suite: Suite) -> None:
    """Refuses a run without the score that its suite compares.

    Args:
        cli: Command line of the run, whose parts are built.
        suite: The suite.

    Raises:
        ValueError: The run writes no metrics.csv into its folder, nothing in it logs the suite's metric, or it has too
            few evaluations for the suite's protocol.
    """
    trainer, dataset = cli.trainer, cli.datamodule.dataset
    folder = Path(trainer.default_root_dir).absolute()
    if not any(isinstance(each, CSVLogger) and Path(each.log_dir).absolute() == folder for each in trainer.loggers):
        raise ValueError(
            "trainer.logger: expected one that writes metrics.csv into the run's folder, which scores are read from; "
            "add tql_lightning.loggers.ContinuedCSVLogger with save_dir ${trainer.default_root_dir}"
        )
    evaluations = evaluations_of(cli)
    others = [each for each in trainer.callbacks if each not in evaluations]  # type: ignore[attr-defined]
    key = f"eval/{suite.metric}"
    if any(fnmatch(key, pattern) for each in others for pattern in logged_keys(each)):
        return
    if not any(suite.metric == name for each in evaluations for name in each.figures(dataset)):
        if any(may_log(part) for part in (cli.model, *others)):
            return  # under names that only it knows
        there = [name for each in evaluations for name in each.figures(dataset) if not name.endswith(SUFFIXES[1:])]
        raise ValueError(
            f"metric: expected a figure of the run's evaluations, found {suite.metric}; "
            + (f"there are {', '.join(there)}" if there else "there are none: add RolloutEvaluation to its callbacks")
        )
    offline = cli.config["fit"].trainer.max_steps
    least = LAST_THREE if suite.protocol == "last_three" else 1
    for each in evaluations if trainer.max_steps >= 0 else ():
        ends = {trainer.max_steps, offline} - {0}
        number = trainer.max_steps // each.every_n_updates + sum(end % each.every_n_updates > 0 for end in ends)
        if number < least:
            raise ValueError(
                f"protocol: {suite.protocol} needs {least} evaluations after the first update, found {number}: "
                f"{trainer.max_steps} updates, one each {each.every_n_updates} (RolloutEvaluation.every_n_updates)"
            )
