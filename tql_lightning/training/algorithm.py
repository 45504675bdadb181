"""Base class of every algorithm: it runs in Lightning what a subclass declares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from inspect import currentframe
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Self, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from tql_lightning.batch import Batch, Draw, NoNoise, UpdateSpec
from tql_lightning.nn.policy import Actor
from tql_lightning.run.checkpoint_io import make_plain, require_readable
from tql_lightning.run.superseded import take_back
from tql_lightning.system.private_api import contents_of_checkpoint
from tql_lightning.training.chunks import (
    restore_progress,
    scheduled_updates,
    skip_validation_of_a_stop,
    validation_follows,
)
from tql_lightning.training.contents import check_settings, load_as
from tql_lightning.training.distributed import agree_to_stop, identity, prefer_static_graph
from tql_lightning.training.divergence import DivergenceWatch, require_sound
from tql_lightning.training.execution import Execution
from tql_lightning.training.fit import Fit
from tql_lightning.training.guides import leave_out_finished_guides
from tql_lightning.training.held_out import HeldOutMeans
from tql_lightning.training.hyperparameters import ALGORITHM, class_path, loadable, require
from tql_lightning.training.optimisation import Optimisation, ParameterGroup, load_moments
from tql_lightning.training.problem import Problem
from tql_lightning.training.sharding import ShardedStrategy, shard
from tql_lightning.training.stock_callbacks import end_with_averages, keep_earlier_checkpoints, release_callbacks
from tql_lightning.training.trainer_checks import check_trainer
from tql_lightning.training.update import Inputs, Losses


class Algorithm(LightningModule, ABC):
    """An offline-RL algorithm: a subclass defines one update, and this class runs it.

    A subclass declares what an update reads (`Batch`, `Noise`, `noise_draws`), which networks it trains
    (`parameter_groups`), what it minimises (`losses`), how target networks move (`before_step`, `after_step`) and how
    it acts (`actor`). Training, resume, several processes, compilation, evaluation and export then work for it.

    All losses of an update are taken at the old parameters and summed, and one AdamW makes one step for all networks.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI): h times the environment's.
        problem: Length of a decision and ranges of rewards (taken from the data by the CLI).
        optimisation: Learning rates, their schedule, weight decay and clipping.
        execution: Compilation, CUDA graphs and the precision of matrix products.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Attributes:
        Batch: NamedTuple class of the fields that an update reads from the dataset.
        Noise: NamedTuple class of the random numbers that an update uses.
        extraction: How the model chooses actions, if its `actor` has several ways; None if there is one.
        fixed_settings: Names of settings that a continued run must not change, since its weights depend on them.

    Examples:
        >>> from tql_lightning import TQL
        >>> model = TQL(3, 1)  # an algorithm; docs/own_algorithm.md writes one
        >>> [group.name for group in model.parameter_groups()]
        ['critic', 'temperature', 'actor']
        >>> model.update_spec.batch.__name__
        'Batch'
    """

    Batch: ClassVar[type[Any]] = Batch
    Noise: ClassVar[type[Any]] = NoNoise
    extraction: str | None = None
    fixed_settings: ClassVar[tuple[str, ...]] = (
        *("observation_dim", "action_dim", "critic", "policy", "value", "entropy_control", "value_loss"),
        *("problem", "discount", "target_aggregation"),
    )

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        problem: Problem = Problem(),  # noqa: B008  (never changed)
        optimisation: Optimisation = Optimisation(),  # noqa: B008  (never changed)
        execution: Execution = Execution(),  # noqa: B008  (never changed)
    ) -> None:
        super().__init__()
        chunk = self.action_chunk = problem.action_chunk
        require("problem.action_chunk", chunk >= 1 and action_dim % chunk == 0, f"a divisor of {action_dim}", chunk)
        self.automatic_optimization = False
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.optimisation, self.execution = optimisation, execution
        self._fit: Fit | None = None
        self._watch = DivergenceWatch()
        self._held_out = HeldOutMeans()
        self._seen_updates = 0  # updates of the weights, for use outside training
        self._validated = -1  # update of the last validation
        self._first_optimizer_state: dict[str, Any] | None = None
        self._precision_before = torch.get_float32_matmul_precision()

    # ------------------------------------------------------------------ what a subclass must define

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns the networks to train; every trainable parameter belongs to exactly one group."""

    @abstractmethod
    def losses(
        self,
        batch: Any,
        noise: Any,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """Computes what the algorithm minimises, from the parameters and the arguments only.

        Args:
            batch: A `Batch`, leading dimension (B,).
            noise: A `Noise`, leading dimension (B,).
            inputs: Result of `inputs`.
            with_metrics: Whether to compute values that are only logged.
            whole_mean: Function from the mean over this process's rows to that over the whole batch. Only a loss that
                divides by a statistic of the batch needs it, since gradients are averaged anyway.
        """

    @abstractmethod
    def actor(self, extraction: str | None = None) -> Actor:
        """Returns the policy as a pure function of observations and noise.

        Args:
            extraction: How to choose actions, if there are several ways; None for the model's own.

        Raises:
            ValueError: The extraction is unknown.
        """

    # ------------------------------------------------------------------ what a subclass may define

    def noise_draws(self) -> dict[str, Draw]:
        """Returns a `Draw` for each field of `Noise`, in the same order."""
        return {}

    def inputs(self, update: int) -> Inputs:
        """Returns tensors for `losses` that depend on the update, counted from 0."""
        return {}

    def before_step(self, inputs: Inputs) -> None:
        """Moves target networks towards the weights from before the optimizer's step."""

    def after_step(self, inputs: Inputs) -> None:
        """Moves target networks towards the weights from after the optimizer's step."""

    def exploring_actor(self) -> Actor:
        """Returns the policy that collects transitions in an online phase; by default `actor`."""
        return self.actor()

    # ------------------------------------------------------------------ what data, callbacks and evaluation use

    @property
    def update_spec(self) -> UpdateSpec:
        """Batch fields and random numbers of one update; the sampler gathers and draws nothing else."""
        return UpdateSpec(self.Batch, self.Noise, self.noise_draws())

    @property
    def env_action_dim(self) -> int:
        """Size of one action of the environment; a decision is ``action_chunk`` of them."""
        return self.action_dim // self.action_chunk

    def trained_networks(self) -> list[nn.Module]:
        """Returns the networks of `parameter_groups`, each once."""
        return list({id(group.module): group.module for group in self.parameter_groups()}.values())

    @property
    def current_update(self) -> int:
        """Number of updates that the weights have seen, also while a trainer only validates or tests."""
        trains = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        return self.global_step if trains else self._seen_updates

    @property
    def has_trained(self) -> bool:
        """Whether the current fit has made an update."""
        return self._watch.begun

    def current_inputs(self) -> Inputs:
        """`inputs` of the current update."""
        return self.inputs(self.current_update)

    def train(self, mode: bool = True) -> Self:
        """Switches to training or evaluation mode; networks without gradients stay in the latter."""
        super().train(mode)
        for network in self.children():
            parameters = [*network.parameters()]
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                network.eval()
        return self

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Acts with the model's own extraction: (B, n_s) and (B, *actor().noise_shape) -> (B, n_a)."""
        return self.actor().act(observations, noise)

    def check_trainer(self, trainer: Trainer) -> None:
        """Rejects a trainer that cannot train this algorithm; see `trainer_checks.check_trainer`."""
        self.optimisation.for_run(scheduled_updates(trainer))
        check_trainer(trainer, self, self.execution)

    def start_with_optimizer(self, state: dict[str, Any]) -> None:
        """Lets the optimizer start with another run's moments; learning rates and decay stay this run's.

        Args:
            state: The optimizer's state in that run's checkpoint.
        """
        self._first_optimizer_state = state

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # a file alone, as it is checked before it is used
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        hparams_file: None = None,
        strict: bool = True,
        weights_only: bool | None = None,
        **settings: Any,
    ) -> Self:
        """Loads a model, with the checks of `load_checkpoint`, where Lightning's would import what a file names.

        Args:
            checkpoint_path: Path of the checkpoint, of this class or of one that is a super- or subclass of it.
            map_location: Device of the weights.
            hparams_file: Not taken, as settings stand in the checkpoint.
            strict: Whether weights must be exactly those of the model.
            weights_only: True or None; checkpoints are never unpickled.
            settings: Settings that replace the checkpoint's.

        Raises:
            CheckpointError: The file is missing, damaged, or does not fit.
            ValueError: ``hparams_file`` is given, or ``weights_only`` is false.
        """
        if hparams_file is not None or weights_only is False:
            raise ValueError(
                "load_from_checkpoint: expected no hparams_file, and weights_only true, found others; settings are the "
                "checkpoint's, or given by name"
            )
        return load_as(checkpoint_path, cls, Algorithm, map_location or "cpu", settings, strict)

    # ------------------------------------------------------------------ what Lightning calls: set-up

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keeps the constructor's arguments, as Lightning does.

        Raises:
            ValueError: A checkpoint could not hold one of them; the message names it.
        """
        frame = frame or cast("FrameType", currentframe()).f_back
        super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
        loadable(dict(self.hparams), type(self))

    def configure_model(self) -> None:
        """Converts the weights to the trainer's precision, and shards them with the strategy "sharded"."""
        if self._trainer is None:
            return
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.check_trainer(self.trainer)
        # Before a checkpoint is loaded: Lightning converts later, when float64 weights would have been rounded.
        self.trainer.precision_plugin.convert_module(self)
        if isinstance(self.trainer.strategy, ShardedStrategy):
            shard(self, self.trainer.strategy.device_mesh)

    def configure_callbacks(self) -> list[Callback]:
        """Adds none; from here on what earlier runs have saved is kept if this one is refused."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._watch = DivergenceWatch()
            keep_earlier_checkpoints(self.trainer, self)
        return []

    def setup(self, stage: str) -> None:
        """Checks parameter groups, and sets DDP's static graph and the precision of matrix products."""
        if stage == "fit":
            self.optimisation.check_groups(self, self.parameter_groups())
            # An average is to hold an update before anything looks at it.
            self.trainer.callbacks.sort(key=lambda each: not isinstance(each, WeightAveraging))  # type: ignore[attr-defined]
        prefer_static_graph(self.trainer.strategy)
        self._precision_before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.execution.float32_matmul_precision)

    def teardown(self, stage: str) -> None:
        """Restores the precision of matrix products, signal handlers and callbacks, and frees the CUDA graph."""
        release_callbacks(self.trainer)
        torch.set_float32_matmul_precision(self._precision_before)
        if self._fit is not None:
            self._fit.runner.guard.give_back()
            self._fit = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes one AdamW for all networks, and the schedule of its learning rates."""
        scaled = self._trainer is not None and getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer, schedule = self._optimisation_of_run().optimizer(
            self.parameter_groups(), self.execution.cuda_graphs, self.device, scaled
        )
        if self._first_optimizer_state is not None:
            load_moments(optimizer, self._first_optimizer_state)
        # LearningRateMonitor logs it under this name and the group's.
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "learning_rate"},
        }

    def _optimisation_of_run(self) -> Optimisation:
        own = self.optimisation
        return own if self._trainer is None else own.for_run(scheduled_updates(self.trainer))

    # ------------------------------------------------------------------ what Lightning calls: training

    def on_fit_start(self) -> None:
        """Starts a `Fit` and its record of finite updates.

        Raises:
            ValueError: See `Fit`.
        """
        self._watch = DivergenceWatch()
        self._fit = Fit(self, self._watch)

    def on_train_start(self) -> None:
        """Reads back what a checkpoint of this run would hold, and wraps signal handlers.

        In a continued run, sets its learning rates and removes later records.

        Raises:
            ValueError: A checkpoint could not be read back; the message names the callback, setting or key.
        """
        assert self._fit is not None
        saved = contents_of_checkpoint(self.trainer)
        require_readable(saved)
        check_settings("of this run", saved["hyper_parameters"], type(self))
        self._fit.runner.guard.take_over()
        if self.global_step > 0:
            take_back(self.trainer, self.global_step)
        self._optimisation_of_run().restore(
            self.optimizers().optimizer,  # type: ignore[union-attr]
            self.lr_schedulers(),
            self.parameter_groups(),
            self.global_step,
            self.execution.cuda_graphs,
            self.device,
        )

    def training_step(self, chunk: tuple[Any, Any], batch_idx: int) -> dict[str, Any]:
        """Makes K updates on a chunk of K minibatches, leading dimensions (K, B); see `Fit.step`."""
        assert self._fit is not None
        return self._fit.step(*chunk)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measures and clips gradients after any unscaling; a CUDA graph contains this already."""
        if self._fit is not None and not self.execution.cuda_graphs:
            self._fit.runner.clip()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stops all processes together, without the validation that only a stop causes; after the callbacks."""
        agree_to_stop(self.trainer)
        skip_validation_of_a_stop(self.trainer)

    def on_validation_end(self) -> None:
        """Stops all processes together, if a callback of one has asked for it at a validation."""
        agree_to_stop(self.trainer)

    def on_train_end(self) -> None:
        """Records the number of updates, and checks the weights once more.

        Raises:
            TrainingDivergedError: A weight or the optimizer's state is NaN or infinite.
        """
        self._seen_updates = self.global_step
        end_with_averages(self.trainer, self)
        require_sound(self, self.trainer, self._watch)

    # ------------------------------------------------------------------ what Lightning calls: held-out transitions

    def validation_step(self, batch_and_noise: tuple[Any, Any], batch_idx: int) -> None:
        """Losses on held-out transitions; leading dimension (B,)."""
        self._add_held_out(*batch_and_noise, first=batch_idx == 0)

    def test_step(self, batch_and_noise: tuple[Any, Any], batch_idx: int) -> None:
        """Losses on held-out transitions; leading dimension (B,)."""
        self._add_held_out(*batch_and_noise, first=batch_idx == 0)

    def on_validation_epoch_end(self) -> None:
        """Logs means over transitions as ``val/...``, except for a pass that only a stop has caused."""
        fits = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if fits and not validation_follows(self.trainer):  # a signal came too late for `on_train_batch_end`
            return
        self._held_out.log(self, "val")
        if fits:
            self._validated = self.global_step

    def on_test_epoch_end(self) -> None:
        """Logs means over transitions as ``test/...``."""
        self._held_out.log(self, "test")

    def _add_held_out(self, batch: Any, noise: Any, first: bool) -> None:
        if first:  # the pass before may have been interrupted
            self._held_out = HeldOutMeans()
        losses = self.losses(batch, noise, self.current_inputs())
        self._held_out.add(len(batch[0]), losses.metrics, losses.diagnostics)

    # ------------------------------------------------------------------ what Lightning calls: checkpoints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the number of updates, and Lightning's loops."""
        self._seen_updates = int(checkpoint.get("global_step", 0))
        self._validated = int(checkpoint.get("validated_update", self._seen_updates))
        if self._trainer is not None:
            restore_progress(self.trainer, checkpoint, self._validated == self._seen_updates)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the class and its settings, with parts as class path and arguments, so that loading needs no pickle.

        Everything else becomes plain values; see `make_plain`.

        Raises:
            TrainingDivergedError: A weight or the optimizer's state is NaN or infinite; nothing is written.
            ValueError: A value cannot be read back; the message names the callback or key.
        """
        trainer = self._trainer  # None for a model that is saved without a trainer
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            require_sound(self, trainer, self._watch)
            leave_out_finished_guides(checkpoint, self, trainer.optimizers)
        checkpoint[ALGORITHM] = class_path(type(self))
        checkpoint["hyper_parameters"] = loadable(checkpoint["hyper_parameters"], type(self))
        checkpoint["validated_update"] = self._validated
        make_plain(checkpoint)
