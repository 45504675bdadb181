"""Private names of torch, Lightning and Minari, each behind a function with a plain name.

An upgrade that renames one breaks here, and ``tests/system/test_private_api.py`` names it. Not here are methods and
attributes that a subclass must override or inherit under their own name; the same test lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from math import isfinite
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.fabric.plugins import CheckpointIO
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint, Timer
    from lightning.pytorch.strategies import DDPStrategy, Strategy
    from torch.distributed.fsdp import FSDPModule
    from torch.utils.tensorboard import SummaryWriter

# ------------------------------------------------------------------ torch


def copy_into(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies each source into its target, with few kernel launches."""
    torch._foreach_copy_(targets, sources)


def interpolate(targets: list[Tensor], sources: list[Tensor], share: float | Tensor) -> None:
    """Sets each target to share * source + (1 - share) * target, with few kernel launches."""
    if isinstance(share, Tensor):
        torch._foreach_lerp_(targets, sources, [share] * len(targets))
    else:
        torch._foreach_lerp_(targets, sources, share)


def norms(tensors: list[Tensor], order: float) -> tuple[Tensor, ...]:
    """The norm of each tensor, with few kernel launches."""
    return tuple(torch._foreach_norm(tensors, order))


def uncast_backward() -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts in which a compiled function's backward pass is compiled without autocast."""
    from torch._functorch import config

    known = hasattr(config, "backward_pass_autocast")  # torch 2.8 does not have it
    return partial(config.patch, {"backward_pass_autocast": "off"} if known else {})


def recompilation_raises() -> AbstractContextManager[Any]:
    """A context in which ``torch.compile`` raises where it would compile a function a second time."""
    return torch._dynamo.config.patch(error_on_recompile=True)  # type: ignore[no-any-return]


def forget_forward_passes(part: FSDPModule) -> None:
    """Removes what FSDP records at a forward pass for its backward pass; without one the records would pile up."""
    state: Any = part._get_fsdp_state()
    state._comm_ctx.post_forward_order.clear()
    one = getattr(state, "_fsdp_param_group", None)  # newer versions of torch have several
    for group in getattr(state, "_fsdp_param_groups", [one] if one is not None else []):
        group._post_forward_indices.clear()


def add_summary(writer: SummaryWriter, summary: Any, update: int) -> None:
    """Writes a TensorBoard summary that the writer has no method for."""
    writer._get_file_writer().add_summary(summary, update)  # type: ignore[no-untyped-call]


def event_file(writer: SummaryWriter) -> Path:
    """Path of the event file that a TensorBoard writer writes."""
    files: Any = writer.file_writer
    return Path(files.event_writer._file_name)


# ------------------------------------------------------------------ Lightning


def validation_is_due(trainer: Trainer) -> bool:
    """Whether Lightning validates after the batch that has just ended."""
    loop: Any = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def count_updates(trainer: Trainer, updates_per_step: int) -> None:
    """Makes Lightning log at numbers of updates, from 1, where it counts batches from 0.

    Rows that Lightning's callbacks and `LightningModule.log` write while a batch is in hand belong to its last update.
    """
    from lightning.pytorch.loops.fit_loop import _FitLoop
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
    from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector

    def update(loop: Any) -> int:
        progress = loop.batch_progress.total
        if progress.ready == progress.processed:
            return int(trainer.global_step)
        end = int(progress.ready) * updates_per_step
        return end if trainer.max_steps < 0 else min(end, trainer.max_steps)

    class Loop(_TrainingEpochLoop):
        _batches_that_stepped = property(update, lambda _, __: None)

    class Connector(_LoggerConnector):
        @property
        def should_update_logs(self) -> bool:
            every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every == 0 or not isinstance(trainer._active_loop, _FitLoop):
                return super().should_update_logs
            last = update(trainer.fit_loop.epoch_loop)
            crosses = last // every > (last - 1) // updates_per_step * updates_per_step // every
            return crosses or trainer.should_stop

    trainer.fit_loop.epoch_loop.__class__ = Loop
    trainer._logger_connector.__class__ = Connector


def show_whole_epoch(bar: Any, updates_per_step: int) -> None:
    """Makes a progress bar of Lightning's count to the epoch's last step, also where a run continues within an epoch.

    Lightning takes what is left of a run for the length of the epoch, and updates for steps.
    """
    from lightning.pytorch.callbacks import TQDMProgressBar

    class _WholeEpoch(type(bar)):  # type: ignore[misc]
        @property
        def total_train_batches(self) -> int | float:
            trainer, in_epoch = self.trainer, self.trainer.num_training_batches
            if trainer.max_steps < 0:
                return in_epoch  # type: ignore[no-any-return]
            before = trainer.current_epoch * in_epoch if trainer.current_epoch else 0
            return min(in_epoch, -(-trainer.max_steps // self.updates_per_step) - before)  # type: ignore[no-any-return]

        def on_train_start(self, *arguments: Any) -> None:
            super().on_train_start(*arguments)
            if isinstance(self, TQDMProgressBar) and self.train_progress_bar.total is None:  # set when an epoch begins
                self.train_progress_bar.total = self.total_train_batches if isfinite(self.total_train_batches) else None

    if not hasattr(bar, "updates_per_step"):
        bar.__class__ = _WholeEpoch
    bar.updates_per_step = updates_per_step


def begin_anew(trainer: Trainer) -> None:
    """Makes a fit without a checkpoint begin anew, where Lightning would continue from what an exception left.

    A job that Slurm has started again is still continued.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    connector = trainer._checkpoint_connector
    if not (SLURMEnvironment.detect() and connector._hpc_resume_path):
        connector._user_managed = True  # with the path None


def checkpoint_intervals(callback: ModelCheckpoint) -> tuple[int, bool]:
    """Updates between two checkpoints, 0 for no such interval; and whether they are made by time."""
    return callback._every_n_train_steps, callback._train_time_interval is not None


def checks_at_ends_of_epochs(timer: Timer) -> bool:
    """Whether a timer looks at the time only when an epoch ends."""
    return timer._interval == "epoch"


def epochs_between(callback: ModelCheckpoint) -> int:
    """Epochs between two checkpoints; 0 where they are made by updates or by time."""
    return callback._every_n_epochs


def saving_is_put_off(callback: Any) -> bool:
    """Whether a checkpoint waits for the validation that follows."""
    return bool(getattr(callback, "_defer_save_until_validation", False))


def skip_next_validation(trainer: Trainer) -> None:
    """Makes Lightning leave out the validation after the batch that has just ended."""
    loop: Any = trainer.fit_loop.epoch_loop
    loop._skip_next_val = True


def ddp_settings(strategy: DDPStrategy) -> dict[str, Any]:
    """Arguments that the strategy passes to DistributedDataParallel; changes take effect when it wraps the model."""
    return strategy._ddp_kwargs


def restart_static_graph(strategy: DDPStrategy) -> None:
    """Makes Lightning start the all-reduce of the first backward pass again, which it does once a strategy."""
    strategy._pl_static_graph_delay_done = False


def start_method(strategy: Strategy) -> str | None:
    """How a strategy starts its processes with ``multiprocessing``: "fork" or "spawn"; None if it does not."""
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

    launcher = strategy.launcher
    return launcher._start_method if isinstance(launcher, _MultiProcessingLauncher) else None


def given_checkpoint_io(strategy: Any) -> CheckpointIO | None:
    """The checkpoint plugin that a strategy was constructed with."""
    found: CheckpointIO | None = getattr(strategy, "_checkpoint_io", None)
    return found


def restores_checkpoint(code: CodeType) -> bool:
    """Whether a function is one of those with which Lightning restores a run from a checkpoint."""
    from lightning.pytorch.loops.fit_loop import _FitLoop
    from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

    return code is _FitLoop._load_combined_loader_states.__code__ or any(
        getattr(method, "__code__", None) is code and name.lstrip("_").startswith(("restore", "resume"))
        for name, method in vars(_CheckpointConnector).items()
    )


def given_hyperparameters(settings: dict[str, Any], instantiator: str) -> AbstractContextManager[None]:
    """A context in which a module keeps these settings as its hyperparameters, not the arguments it is made with."""
    from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context

    return _given_hyperparameters_context(settings, instantiator)


def contents_of_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """What Lightning would write into a checkpoint now; call it on every process."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def wraps_checkpoint_io(checkpoint_io: Any) -> bool:
    """Whether a checkpoint plugin wraps another, its ``checkpoint_io``, as ``AsyncCheckpointIO`` does."""
    from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

    return isinstance(checkpoint_io, _WrappingCheckpointIO)


def last_checkpoints(callback: ModelCheckpoint, trainer: Trainer) -> list[Path]:
    """Files that Lightning takes for a callback's last checkpoint."""
    return [Path(path) for path in callback._find_last_checkpoints(trainer)]


# ------------------------------------------------------------------ Minari


def evaluation_spec(dataset: Any) -> Any:
    """Gymnasium's specification of the environment that a Minari dataset is evaluated in; None if it names none."""
    return dataset._eval_env_spec
