"""What Lightning does around each update's backward pass and optimizer step, left out where nobody would notice."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.optim import Optimizer


def hears_backward(trainer: Any, module: LightningModule) -> bool:
    """Whether anything of Lightning's does or hears something at a backward pass: scaling, processes, profiler, hooks.

    Where nothing does, calling nobody would take as long as a tenth of the smallest critic's update on a GPU.
    """
    hooks = ("on_before_backward", "on_after_backward")
    own = any(_is_own(name, module, LightningModule) for name in (*hooks, "backward", "manual_backward"))
    return own or _is_heard(trainer, hooks)


def hears_step(trainer: Any, module: LightningModule, base: type[LightningModule]) -> bool:
    """Whether anything of Lightning's does or hears something at an optimizer's step, beyond counting it.

    Args:
        trainer: that trains.
        module: what it trains.
        base: the class whose own hook before the step `CountedOptimizer` calls.
    """
    hook = "on_before_optimizer_step"
    return _is_own(hook, module, base) or _is_heard(trainer, (hook,))


def _is_heard(trainer: Any, hooks: tuple[str, ...]) -> bool:
    precision: Any = trainer.precision_plugin
    if type(trainer.strategy) is not SingleDeviceStrategy or type(trainer.profiler) is not PassThroughProfiler:
        return True
    if type(precision) is not Precision and (type(precision) is not MixedPrecision or precision.scaler is not None):
        return True
    return any(_is_own(hook, callback, Callback) for hook in hooks for callback in trainer.callbacks)


def _is_own(name: str, instance: object, base: type) -> bool:
    """Whether an object's method is another than that of a base class; also a function that was set on it."""
    return getattr(getattr(instance, name), "__func__", None) is not getattr(base, name)


class CountedOptimizer:
    """An optimizer whose steps the trainer counts, for where `hears_step` is false.

    Args:
        optimizer: the optimizer itself, not Lightning's.
        module: whose hook before the step is called, with the gradients of the step.
    """

    def __init__(self, optimizer: Optimizer, module: LightningModule) -> None:
        self.optimizer, self.module = optimizer, module

    def zero_grad(self) -> None:
        """Drops the gradients."""
        self.optimizer.zero_grad()

    def step(self) -> Any:
        """One step; the trainer's ``global_step`` goes up by one, as with Lightning's."""
        progress = self.module.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        hook: Any = partial(self.module.on_before_optimizer_step, self.optimizer)
        output: Any = self.optimizer.step(hook)
        progress.increment_completed()
        return output
