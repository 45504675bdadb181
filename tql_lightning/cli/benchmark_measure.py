"""Measures how long an update of a planned run takes, for the estimate of ``tql benchmark --dry-run``."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from lightning.pytorch import Callback, Trainer

from tql_lightning.benchmark.suite import Suite
from tql_lightning.cli.benchmark_checks import Group, parse_fit, quietly
from tql_lightning.cli.benchmark_scores import check_score
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.sources.ogbench import environment_id
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.evaluation.envs import make_env

UPDATES = 6
MOST_SECONDS = 5.0  # after which no further update is measured
OFF: dict[str, Any] = {
    **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    "limit_val_batches": 0,
}
ROWS = 2000  # of random transitions


class _Clock(Callback):
    """Times of the ends of updates; ends training when the time is over."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Notes the time."""
        self.times.append(time.perf_counter())
        if self.times[-1] - self.times[0] > MOST_SECONDS:
            trainer.should_stop = True


def seconds_per_update(group: Group, suite: Suite) -> float | None:
    """Median time of a few updates, on random transitions where a file is missing; None for no known environment's.

    Raises:
        ValueError: The run would have no score; see `check_score`.
    """
    if group.error:
        return None
    cli = parse_fit(group.runs[0])
    if group.missing_datasets():
        given = group.dataset.init_args
        domain, path = given.get("domain"), Path(given.get("path") or "")
        if domain is None and path.stem not in gymnasium.registry:
            return None
        env_id = path.stem if domain is None else environment_id(domain, given.get("task"))
        with quietly():
            cli.config["fit"].data.dataset = _random_dataset(env_id)
    clock = _Clock()
    devices = {name: cli.config["fit"].trainer.get(name) for name in ("accelerator", "devices", "precision")}
    with quietly():
        cli.build()
        check_score(cli, suite)
        trainer = Trainer(max_steps=UPDATES, max_epochs=-1, callbacks=[clock], **OFF, **devices)
        trainer.fit(cli.model, datamodule=cli.datamodule)
    assert isinstance(cli.datamodule, OfflineDataModule)
    steps = np.diff(clock.times) / cli.datamodule.updates_per_step
    return float(np.median(steps)) if len(steps) else None


def _random_dataset(env_id: str) -> TransitionDataset:
    """Random transitions of an environment's sizes, since the time of an update depends on nothing else."""
    with closing(make_env(env_id)) as env:
        assert env.observation_space.shape is not None
        observation_dim, actions = env.observation_space.shape[0], env.raw_actions
    rng = np.random.default_rng(0)
    return TransitionDataset.from_arrays(
        rng.normal(size=(ROWS, observation_dim)),
        rng.uniform(actions.low, actions.high, size=(ROWS, *actions.shape)),
        rng.uniform(-1, 0, size=ROWS),
        np.zeros(ROWS, dtype=bool),
        np.arange(ROWS) % 100 == 99,
        rng.normal(size=(ROWS, observation_dim)),
        name="random",
        env_id=env_id,
        action_low=actions.low,
        action_high=actions.high,
    )
