"""What Lightning costs: updates through a Trainer against a bare loop around the same updates.

    python -m benchmarks.trainer --hidden-dim 128 --json

The real update gives Lightning's share of the time; one that computes next to nothing gives microseconds. Chunks of K
updates are alternated: after each of the trainer's, a callback times one of a bare loop on a twin of the model.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from benchmarks.harness import Comparison, clock, machine, prepare, show, synchronize
from benchmarks.update import update_parser
from tql_lightning.batch import Batch
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.loops import Losses
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.tql import TQL


class TrivialTQL(TQL):
    """`TQL` in its loops, with losses that cost next to nothing."""

    def losses(self, batch: Batch, *others: Any) -> Losses:
        """A product."""
        del others
        return (next(self.critic.parameters()) * batch.rewards[0]).sum(), None, {}


class AgainstBareLoop(Callback):
    """Times the trainer's chunks and, after each, one of a bare loop.

    Args:
        twin: the same model, which the bare loop trains.
        data: what both train on.
        batch: B.
        chunk: K.
        warmup: chunks that are not timed.
        clock: that is read.
    """

    def __init__(
        self,
        twin: TQL,
        data: TransitionDataset,
        batch: int,
        chunk: int,
        warmup: int,
        clock: Callable[[], float],
    ) -> None:
        self.twin, self.chunk, self.warmup, self.clock = twin, chunk, warmup, clock
        self.data, self.batch = data, batch
        self.seconds: dict[str, list[float]] = {"trainer": [], "bare": []}

    def on_train_start(self, trainer: Trainer, pl_module: TQL) -> None:
        """Puts the twin where the model is."""
        self.twin.to(pl_module.device)
        self.sampler = TransitionSampler(self.data, self.batch, seed=0, device=pl_module.device)
        configured: Any = self.twin.configure_optimizers()
        self.optimizer, self.schedule = configured["optimizer"], configured["lr_scheduler"]
        self.updates = 0
        self.start = self.clock()

    def on_train_batch_end(self, trainer: Trainer, pl_module: TQL, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Reads the clock after a chunk of the trainer's, and after one of the bare loop's."""
        synchronize(pl_module.device)
        middle = self.clock()
        self.bare_chunk()
        synchronize(pl_module.device)
        end = self.clock()
        if batch_idx >= self.warmup:
            self.seconds["trainer"].append((middle - self.start) / self.chunk)
            self.seconds["bare"].append((end - middle) / self.chunk)
        self.start = self.clock()

    def bare_chunk(self) -> None:
        """K updates without Lightning."""
        model, optimizer = self.twin, self.optimizer
        batches, noises = self.sampler.chunk(self.updates, self.chunk)
        for k in range(self.chunk):
            targets = None if model.temperature is None else model.temperature.target_entropy(self.updates)
            optimizer.zero_grad()
            with_metrics = k == self.chunk - 1
            total, _, _ = model.training_losses(batches.update(k), noises.update(k), targets, with_metrics)
            total.backward()
            model._gradient_norms = {} if with_metrics else None
            model.clip_each_network()
            model.move_target()
            optimizer.step()
            self.schedule.step()
            self.updates += 1


def random_dataset(observation_dim: int, action_dim: int, rows: int = 1000) -> TransitionDataset:
    """Transitions without meaning."""
    rng = np.random.default_rng(0)
    return TransitionDataset.from_arrays(
        rng.normal(size=(rows, observation_dim)),
        rng.uniform(-1, 1, size=(rows, action_dim)),
        rng.normal(size=rows),
        np.zeros(rows, dtype=bool),
        np.arange(rows) % 100 == 99,
        rng.normal(size=(rows, observation_dim)),
        name="random",
    )


def compare(
    make: Callable[[], TQL], data: TransitionDataset, options: argparse.Namespace, chunks: int, warmup: int
) -> Comparison:
    """Times chunks of a trainer and of a bare loop, seconds for each update."""
    against = AgainstBareLoop(make(), data, options.batch, options.chunk, warmup, clock(options))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=(warmup + chunks) * options.chunk,
            max_epochs=-1,
            accelerator="gpu" if options.device.startswith("cuda") else "cpu",
            devices=1,
            callbacks=[against],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=Path(folder),
        )
        trainer.fit(make(), datamodule=OfflineDataModule(data, options.batch, options.chunk))
    return Comparison(against.seconds)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Times both; returns the fields that are printed."""
    prepare(options)
    policy: dict[str, Any] = {} if options.policy_dim is None else {"hidden_dims": (options.policy_dim,) * 4}
    make = partial(
        TQL,
        options.observation_dim,
        options.action_dim,
        critic=partial(TransformerCritic, hidden_dim=options.hidden_dim, num_layers=options.layers),
        policy=partial(FlowPolicy, **policy),
        compile=options.compile,
    )
    data = random_dataset(options.observation_dim, options.action_dim)
    real = compare(make, data, options, options.rounds, options.warmup)
    tiny = {"critic": partial(MLPCritic, hidden_dims=(1,)), "policy": partial(FlowPolicy, hidden_dims=(1,))}
    trivial = compare(
        partial(TrivialTQL, 1, 1, **tiny), random_dataset(1, 1), options, options.trivial_chunks, options.warmup
    )
    extra = [a - b for a, b in zip(trivial.seconds["trainer"], trivial.seconds["bare"], strict=True)]
    return {
        **real.fields("trainer"),
        **real.fields("bare"),
        "overhead": real.ratio("trainer", "bare") - 1.0,
        "overhead_spread": real.ratio_spread("trainer", "bare"),
        "trivial_trainer_us": 1e6 * trivial.median("trainer"),
        "trivial_bare_us": 1e6 * trivial.median("bare"),
        "trivial_overhead_us": 1e6 * statistics.median(extra),
        "device": options.device,
        "hidden_dim": options.hidden_dim,
        "chunk": options.chunk,
        "threads": options.threads,
        "machine": machine(options.device),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark with options of the command line."""
    options = update_parser(__doc__)
    options.add_argument("--chunk", type=int, default=10, help="K, updates in a step of the trainer")
    options.add_argument("--trivial-chunks", type=int, default=500, help="timings of the trivial update")
    parsed = options.parse_args(arguments)
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its advice
        fields = run(parsed)
    lightning.setLevel(level)
    show(fields, parsed.json)


if __name__ == "__main__":
    main()
