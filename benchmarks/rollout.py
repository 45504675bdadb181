"""Evaluation: steps per second, and how much training is slowed while another process evaluates.

    python -m benchmarks.rollout
    python -m benchmarks.rollout --env ogbench:cube-single-singletask-task1-v0 --observation_dim 28 --action_dim 5

Training is alternated with and without the evaluating process, which is paused (SIGSTOP) for the rounds without.
A machine that others use shows it: their work takes turns with both.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer

from benchmarks.harness import PEAK, Peak, alternate, count_flops, machine, parser, prepare, show
from tql_lightning import TQL, OfflineDataModule, TransitionDataset
from tql_lightning.batch import at_update
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.evaluation.background import BackgroundEvaluator, EvaluationJob
from tql_lightning.evaluation.rollout import rollout
from tql_lightning.nn.critic import TransformerCritic

ALONE, EVALUATING = "alone", "evaluating"


def random_dataset(observation_dim: int, action_dim: int, rows: int = 2_000) -> TransitionDataset:
    """Transitions of an environment's sizes."""
    rng = np.random.default_rng(0)
    return TransitionDataset.from_arrays(
        rng.normal(size=(rows, observation_dim)),
        rng.uniform(-1.0, 1.0, size=(rows, action_dim)),
        rng.normal(size=rows),
        np.zeros(rows),
        np.arange(rows) % 100 == 99,
        rng.normal(size=(rows, observation_dim)),
        name="random",
    )


def updates_of(model: TQL, dataset: TransitionDataset, batch_size: int, number: int) -> Callable[[], None]:
    """So many updates in a row: losses, gradient, AdamW."""
    sampler = TransitionSampler(dataset, batch_size, seed=0, device="cpu", spec=model.update_spec)
    optimizer = model.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]

    def run() -> None:
        batches, noises = sampler.chunk(0, number)
        for k in range(number):
            optimizer.zero_grad()
            batch, noise = at_update(batches, k), at_update(noises, k)
            losses = model.losses(batch, noise, model.current_inputs(), with_metrics=False)
            losses.total.backward()
            optimizer.step()
            model.before_step({})

    return run


def steps_per_second(model: TQL, env_id: str, episodes: int, rounds: int) -> dict[str, float]:
    """The environment's steps in a second of an evaluation in one process."""
    steps = 0

    def play() -> None:
        nonlocal steps
        steps = int(rollout(model.actor(), env_id, episodes, seed=0).lengths.sum())

    seconds = alternate({"rollout": play}, rounds=rounds, warmup=0)
    return {**seconds.fields("rollout"), "steps_per_s": steps / seconds.median("rollout")}


def busy_evaluator(snapshot: Path, env_id: str) -> tuple[BackgroundEvaluator, int]:
    """A process that plays more episodes than the benchmark lasts, once it has begun; and its id."""
    evaluator = BackgroundEvaluator(timeout=3_600.0)
    evaluator.submit(EvaluationJob(0, str(snapshot), env_id, 1_000_000, 0, 10, False, None))
    while not evaluator._heartbeat.value:
        failed = evaluator.next_outcome(0.5)
        assert failed is None, failed.error
    time.sleep(5.0)  # the first heartbeat comes before the environments are made
    assert evaluator._process is not None
    assert evaluator._process.pid is not None
    return evaluator, evaluator._process.pid


def main() -> None:
    """Measures and prints both."""
    options = parser(__doc__, rounds=10, warmup=1)
    options.add_argument("--env", default="Pendulum-v1", help="Gymnasium id")
    options.add_argument("--observation_dim", type=int, default=3)
    options.add_argument("--action_dim", type=int, default=1)
    options.add_argument("--hidden_dim", type=int, default=128, help="of the critic")
    options.add_argument("--batch_size", type=int, default=256)
    options.add_argument("--updates", type=int, default=3, help="in one timing")
    options.add_argument("--episodes", type=int, default=50, help="of the evaluation whose steps are counted")
    options.add_argument("--rollouts", type=int, default=3, help="evaluations whose steps are counted")
    options.add_argument("--cpu_time", action="store_true", help="count what training computes, not what it waits")
    arguments = options.parse_args()
    prepare(arguments)
    dataset = random_dataset(arguments.observation_dim, arguments.action_dim)
    critic = partial(TransformerCritic, hidden_dim=arguments.hidden_dim)
    model = TQL(arguments.observation_dim, arguments.action_dim, critic=critic)

    fields: dict[str, object] = {"machine": machine("cpu"), "env": arguments.env}
    fields |= steps_per_second(model, arguments.env, arguments.episodes, arguments.rollouts)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu", max_steps=0, max_epochs=-1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, datamodule=OfflineDataModule(dataset))
        trainer.save_checkpoint(Path(folder) / "snapshot.ckpt", weights_only=True)
        evaluator, process = busy_evaluator(Path(folder) / "snapshot.ckpt", arguments.env)
        train = updates_of(model, dataset, arguments.batch_size, arguments.updates)

        peak = Peak()
        product = peak.variants[PEAK]

        def after(number: signal.Signals, work: Callable[[], object] = train) -> Callable[[], None]:
            def run() -> None:
                os.killpg(process, number)
                work()

            return run

        clock = time.process_time if arguments.cpu_time else time.perf_counter
        variants = {ALONE: after(signal.SIGSTOP), EVALUATING: after(signal.SIGCONT)}
        variants[PEAK] = after(signal.SIGSTOP, product)
        compared = alternate(variants, rounds=arguments.rounds, warmup=arguments.warmup, clock=clock)
        os.killpg(process, signal.SIGCONT)
        evaluator.close()
    fields |= compared.fields(ALONE) | compared.fields(EVALUATING) | peak.fields(compared, ALONE, count_flops(train))
    fields["slowed_to"] = compared.ratio(EVALUATING, ALONE)
    fields["slowed_to_spread"] = compared.ratio_spread(EVALUATING, ALONE)
    fields["threads"] = torch.get_num_threads()
    show(fields, arguments.json)


if __name__ == "__main__":
    main()
