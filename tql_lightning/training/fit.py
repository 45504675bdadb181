"""One fit of an algorithm: its updates, and what is logged of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tql_lightning.batch import at_update
from tql_lightning.data.counter_random import seed_generators
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.training.chunks import chunk_size
from tql_lightning.training.cost import warn_of_many_tokens
from tql_lightning.training.distributed import over_processes
from tql_lightning.training.divergence import DivergenceWatch, broken_metrics, count_broken, diverged
from tql_lightning.training.optimisation import NO_DECAY
from tql_lightning.training.out_of_memory import explained_memory
from tql_lightning.training.restoring import check_restored_states
from tql_lightning.training.stock_callbacks import adapt_callbacks, log_metrics
from tql_lightning.training.update import UpdateRunner

BROKEN = "broken_tensors"


class Fit:
    """Runs the updates of a fit; warns of an update that takes long.

    Args:
        algorithm: Algorithm to train, attached to a trainer.
        watch: Record of the updates that were finite.

    Raises:
        ValueError: See `adapt_callbacks` and `Optimisation.check_optimizers`.
    """

    def __init__(self, algorithm: Any, watch: DivergenceWatch) -> None:
        trainer, replayed = algorithm.trainer, algorithm.execution.cuda_graphs
        check_restored_states(trainer.optimizers)
        self.algorithm, self.watch = algorithm, watch
        self.measured_at = adapt_callbacks(trainer, algorithm)  # intervals at which a callback needs metrics
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        algorithm.optimisation.check_optimizers(algorithm, trainer.optimizers, schedules, replayed)
        rows = int(getattr(trainer.datamodule, "batch_size", 0)) // trainer.world_size
        warn_of_many_tokens(algorithm, rows, algorithm.device)
        self.runner = UpdateRunner(algorithm)

    def step(self, batches: Any, noises: Any) -> dict[str, Any]:
        """Makes K updates on a chunk of K minibatches; ends early when the trainer is to stop.

        Args:
            batches: Batches, leading dimensions (K, B).
            noises: Their noise, leading dimensions (K, B).

        Returns:
            Results of the last update for callbacks, without gradient: "loss", "log_now" (whether metrics are logged),
            "metrics" (name -> scalar; empty unless logged) and "diagnostics" (name -> tensor).

        Raises:
            TooLittleMemoryError: An update needs more memory than there is.
            TrainingDivergedError: See `log`.
        """
        model, trainer = self.algorithm, self.algorithm.trainer
        num_updates, rows = batches[0].shape[:2]
        first, replayed = model.global_step, model.execution.cuda_graphs
        begun = first - first % chunk_size(trainer)  # a stop may have cut the chunk in two
        seed = getattr(trainer.datamodule, "seed", None)
        schedule = model.lr_schedulers()
        log_now = self._crosses_log_interval(begun, first + num_updates)
        with explained_memory(model, rows, model.device, replayed):
            for k in range(num_updates):
                if seed is not None:  # seeds torch's own generators, which dropout uses
                    seed_generators(model.device, seed, first + k, model.global_rank)
                last = k == num_updates - 1
                inputs, measured = model.inputs(first + k), last and log_now
                losses = self.runner.run(at_update(batches, k), at_update(noises, k), inputs, measured, kept=last)
                if schedule is not None:  # a subclass has none
                    schedule.step()
                if last or not replayed:  # the next replay overwrites results that are not copied
                    self.watch.keep(first + k, losses.total)
                if trainer.should_stop:
                    break
        log_now = bool(losses.metrics)
        if log_now:
            self.log(losses.metrics)
        return {
            "loss": losses.total,
            "metrics": losses.metrics,
            "diagnostics": losses.diagnostics,
            "log_now": log_now,
        }

    def log(self, metrics: dict[str, Tensor]) -> None:
        """Logs an update's metrics over all processes, and learning rates, as ``train/NAME``.

        Raises:
            TrainingDivergedError: A metric, a parameter or the optimizer's state is NaN or infinite.
        """
        model, trainer = self.algorithm, self.algorithm.trainer
        averaged = over_processes(metrics | {BROKEN: count_broken(model, trainer)})
        broken_tensors = averaged.pop(BROKEN)
        scalars = {f"train/{name}": value for name, value in averaged.items()}
        for index, group in enumerate(model.optimizers().optimizer.param_groups):
            name = group.get("name", f"group_{index}")
            if not name.endswith(NO_DECAY):
                scalars[f"train/learning_rate/{name}"] = float(group["lr"])
        data = trainer.datamodule
        if isinstance(data, OfflineDataModule):
            scalars |= data.env_steps(model.global_step) | data.online_metrics()
        broken = broken_metrics(scalars, trainer)
        if broken or broken_tensors:
            for logger in model.loggers:
                logger.log_metrics(scalars, step=model.global_step)
            raise diverged(model, trainer, self.watch, broken)
        self.watch.passed(model.global_step)
        log_metrics(trainer, scalars, model.global_step)

    def _crosses_log_interval(self, first_update: int, last_update: int) -> bool:
        intervals = [self.algorithm.trainer.log_every_n_steps, *self.measured_at]
        return any(every > 0 and last_update // every > first_update // every for every in intervals)
