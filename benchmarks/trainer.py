"""What Lightning costs: updates through a Trainer against a bare loop around the same updates.

    python -m benchmarks.trainer --hidden-dim 128 --json

The real update gives Lightning's share of the time; one that computes next to nothing gives microseconds. Chunks of K
updates are alternated: after each of the trainer's, a callback times one of a bare loop on a twin of the model. Before
either of the real update's, a large matrix product gives the device's peak.
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

from benchmarks.harness import (
    PEAK,
    Comparison,
    Peak,
    clock,
    count_flops,
    interquartile_range,
    machine,
    prepare,
    show,
    synchronize,
)
from benchmarks.update import Problem, as_counted, precision_context, runner_without_trainer, update_parser
from tql_lightning.algorithms.tql import TQL
from tql_lightning.batch import Batch, at_update
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.training.execution import Execution, MatmulPrecision
from tql_lightning.training.update import Losses


class TrivialTQL(TQL):
    """`TQL` in its loops, with losses that cost next to nothing."""

    def losses(self, batch: Batch, *others: Any, **more: Any) -> Losses:
        """A product."""
        del others, more
        return Losses((next(self.critic.parameters()) * batch.rewards[0]).sum(), {}, {})


class AgainstBareLoop(Callback):
    """Times the trainer's chunks and, after each, one of a bare loop.

    Args:
        twin: the same model, which the bare loop trains.
        data: what both train on.
        options: of the command line: B, K, chunks that are not timed, precision, and what says which clock is read.
        peak: also timed, before each chunk of either; None for none.
    """

    def __init__(
        self,
        twin: TQL,
        data: TransitionDataset,
        options: argparse.Namespace,
        peak: Peak | None = None,
    ) -> None:
        self.twin, self.data, self.peak = twin, data, peak
        self.batch, self.chunk, self.warmup = options.batch, options.chunk, options.warmup
        self.precision, self.clock = options.precision, clock(options)
        self.seconds: dict[str, list[float]] = {"trainer": [], "bare": []}
        if peak is not None:
            self.seconds[PEAK] = []

    def on_train_start(self, trainer: Trainer, pl_module: TQL) -> None:
        """Puts the twin where the model is."""
        self.twin.to(pl_module.device)
        self.runner = runner_without_trainer(self.twin)
        spec = self.twin.update_spec
        self.sampler = TransitionSampler(self.data, self.batch, seed=0, device=pl_module.device, spec=spec)
        configured: Any = self.twin.configure_optimizers()
        self.optimizer, self.schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        replayed = self.twin.execution.cuda_graphs
        self.graphed = self.runner.record(self.optimizer, list(self.twin.inputs(0))) if replayed else None
        self.updates = 0
        self.start = self.clock()

    def on_train_batch_end(self, trainer: Trainer, pl_module: TQL, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Reads the clock after a chunk of the trainer's, and after one of the bare loop's."""
        synchronize(pl_module.device)
        taken = {"trainer": (self.clock() - self.start) / self.chunk}
        taken[PEAK] = self.time_peak()
        taken["bare"] = self.timed(self.bare_chunk) / self.chunk
        self.time_peak()  # so that both chunks find the same caches
        if batch_idx >= self.warmup:
            for name, seconds in self.seconds.items():
                seconds.append(taken[name])
        self.start = self.clock()

    def timed(self, call: Callable[[], object]) -> float:
        """Seconds of a call."""
        start = self.clock()
        call()
        synchronize(self.twin.device)
        return self.clock() - start

    def time_peak(self) -> float:
        """Seconds of the large matrix product; 0 where none is asked for."""
        return 0.0 if self.peak is None else self.timed(self.peak.variants[PEAK])

    def bare_chunk(self) -> None:
        """K updates without Lightning."""
        model, optimizer = self.twin, self.optimizer
        batches, noises = self.sampler.chunk(self.updates, self.chunk)
        for k in range(self.chunk):
            inputs, batch, noise = model.inputs(self.updates), at_update(batches, k), at_update(noises, k)
            with precision_context(self.precision, model.device):
                if self.graphed is not None:
                    self.graphed((*batch, *noise, *inputs.values()))
                else:
                    self.runner.step(batch, noise, inputs, optimizer, with_metrics=False)
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
    make: Callable[[], TQL],
    data: TransitionDataset,
    options: argparse.Namespace,
    chunks: int,
    peak: Peak | None = None,
) -> Comparison:
    """Times chunks of a trainer and of a bare loop, seconds for each update."""
    against = AgainstBareLoop(make(), data, options, peak)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=(options.warmup + chunks) * options.chunk,
            max_epochs=-1,
            accelerator="gpu" if options.device.startswith("cuda") else "cpu",
            devices=1,
            precision="bf16-mixed" if options.precision == "bfloat16" else "32-true",
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


def run(options: argparse.Namespace, peak_size: int | None = None) -> dict[str, Any]:
    """Times both; returns the fields that are printed."""
    prepare(options)
    policy: dict[str, Any] = {} if options.policy_dim is None else {"hidden_dims": (options.policy_dim,) * 4}
    matmul: MatmulPrecision = "high" if options.precision == "tf32" else "highest"
    how: dict[str, Any] = {"execution": Execution(options.compile, options.cuda_graphs, matmul)}
    make = partial(
        TQL,
        options.observation_dim,
        options.action_dim,
        critic=partial(TransformerCritic, hidden_dim=options.hidden_dim, num_layers=options.layers),
        policy=partial(FlowPolicy, **policy),
        **how,
    )
    data = random_dataset(options.observation_dim, options.action_dim)
    peak = Peak(options.device, options.precision, peak_size)
    real = compare(make, data, options, options.rounds, peak)
    flops = float(count_flops(Problem(as_counted(options)).ours))
    tiny = {"critic": partial(MLPCritic, hidden_dims=(1,)), "policy": partial(FlowPolicy, hidden_dims=(1,))}
    trivial = compare(partial(TrivialTQL, 1, 1, **tiny, **how), random_dataset(1, 1), options, options.trivial_chunks)
    extra = [a - b for a, b in zip(trivial.seconds["trainer"], trivial.seconds["bare"], strict=True)]
    return {
        **real.fields("trainer"),
        **real.fields("bare"),
        "overhead": real.ratio("trainer", "bare") - 1.0,
        "overhead_spread": real.ratio_spread("trainer", "bare"),
        **peak.fields(real, "trainer", flops),
        **peak.fields(real, "bare", flops),
        "trivial_trainer_us": 1e6 * trivial.median("trainer"),
        "trivial_bare_us": 1e6 * trivial.median("bare"),
        "trivial_overhead_us": 1e6 * statistics.median(extra),
        "trivial_overhead_spread_us": 1e6 * interquartile_range(extra),
        "device": options.device,
        "hidden_dim": options.hidden_dim,
        "precision": options.precision,
        "compile": options.compile,
        "cuda_graphs": options.cuda_graphs,
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
