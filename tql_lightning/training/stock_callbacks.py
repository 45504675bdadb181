"""Fits Lightning's own callbacks to an algorithm, whose steps are updates and whose metrics are logged now and then.

Lightning runs callbacks that monitor a metric after a validation and at the end of an epoch. Most runs here have one
epoch, and their evaluations are no validations, so that such callbacks run when their metric is logged instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from functools import partial
from inspect import isfunction
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, WeightAveraging

from tql_lightning.batch import at_update
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.nn.dropout import evaluation_mode
from tql_lightning.system.private_api import (
    checkpoint_intervals,
    count_updates,
    saving_is_put_off,
    show_whole_epoch,
)
from tql_lightning.training.chunks import chunk_size

MONITOR_HOOKS = ("on_validation_end", "on_train_epoch_end")  # a callback acts in one of them, by its own settings
SAVE_HOOK = "on_train_batch_end"
END_HOOK = "on_train_end"
EXCEPTION_HOOK = "on_exception"
Hook = Callable[..., None]
LOG_CALLS = frozenset({"log", "log_dict", "log_metrics", "callback_metrics"})


def log_metrics(trainer: Trainer, metrics: Mapping[str, float], update: int) -> None:
    """Writes metrics to the loggers and to ``trainer.callback_metrics``, and runs the callbacks that monitor one.

    Call it on every process, with the same metrics.

    Args:
        trainer: Trainer of a fit.
        metrics: Numbers by key.
        update: Update that they belong to.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=update)
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if _monitor(callback) in metrics:
            for hook in MONITOR_HOOKS:
                _own(callback, hook)(trainer, trainer.lightning_module)


class _AutomaticallyOptimised:
    """A model whose manual optimisation `ModelCheckpoint` does not see: for that it ignores ``train_time_interval``."""

    automatic_optimization = True

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def keep_earlier_checkpoints(trainer: Trainer, model: Any) -> None:
    """Lets callbacks that save on exceptions save only what this fit has trained, and nothing in a development run.

    Otherwise a run that is refused would overwrite what an earlier one left. Call it before anything can be refused.

    Args:
        trainer: Trainer of a fit.
        model: Algorithm that it trains.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint):
            _replace(callback, EXCEPTION_HOOK, partial(_if_trained, model))
            if trainer.fast_dev_run:  # type: ignore[attr-defined]
                _replace(callback, "teardown", _ignore)


def adapt_callbacks(trainer: Trainer, model: Any) -> list[int]:
    """Checks what callbacks monitor, and makes them act when their metric is logged; `release_callbacks` undoes it.

    Args:
        trainer: Trainer of a fit.
        model: Algorithm that it trains.

    Returns:
        Intervals in updates at which a checkpoint needs the algorithm's metrics.

    Raises:
        ValueError: Nothing logs what a callback monitors, or a checkpoint's interval does not fit.
    """
    release_callbacks(trainer)  # an exception has kept an earlier fit from doing so
    keep_earlier_checkpoints(trainer, model)
    count_updates(trainer, chunk_size(trainer))
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    logging = {key: each for each in callbacks for key in logged_keys(each)}
    known: set[str] | None = None
    needed = []
    for callback in callbacks:
        every, timed = checkpoint_intervals(callback) if isinstance(callback, ModelCheckpoint) else (0, False)
        if isinstance(callback, ModelCheckpoint):
            _replace(callback, SAVE_HOOK, _with_automatic)
            _require_multiple(callback, every, chunk_size(trainer), "data.updates_per_step")
        if isinstance(callback, WeightAveraging):
            _replace(callback, END_HOOK, _ignore)
        if isinstance(callback, ProgressBar):
            show_whole_epoch(callback, chunk_size(trainer))
        monitor = _monitor(callback)
        if monitor is None:
            continue
        logger = next((each for key, each in logging.items() if fnmatch(monitor, key)), None)
        if logger is None:
            known = model_metrics(trainer, model) if known is None else known
            if not any(fnmatch(monitor, key) for key in known):
                if known and not any(map(may_log, (model, *callbacks))):
                    raise _unknown(callback, monitor, known | logging.keys())
                continue
            if monitor.startswith("val/"):
                continue  # Lightning runs it after each validation
            needed += [every] if every else []
        elif hasattr(logger, "every_n_updates") and isinstance(callback, ModelCheckpoint):
            name = f"{type(logger).__name__}.every_n_updates"
            _require_multiple(callback, every, logger.every_n_updates, name)
            if timed:
                raise ValueError(
                    f"{type(callback).__name__}.train_time_interval: expected none with monitor {monitor}, since the "
                    f"weights of another update than the evaluated one would be kept; leave it out"
                )
        for hook in MONITOR_HOOKS:
            _replace(callback, hook, partial(_if_put_off, callback))
    return needed


def end_with_averages(trainer: Trainer, model: Any) -> None:
    """Gives the model averaged weights, if there are any, once the last checkpoint holds those to continue from."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            _own(callback, END_HOOK)(trainer, model)


def release_callbacks(trainer: Trainer) -> None:
    """Gives callbacks back the hooks that `adapt_callbacks` replaced."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for hook in (SAVE_HOOK, END_HOOK, EXCEPTION_HOOK, "teardown", *MONITOR_HOOKS):
            replacement = vars(callback).get(hook)
            if isinstance(replacement, _Replacement):
                delattr(callback, hook)
                if getattr(callback, hook) != replacement.own:  # a hook of this object alone, as in LambdaCallback
                    setattr(callback, hook, replacement.own)


def model_metrics(trainer: Trainer, model: Any) -> set[str]:
    """Keys of an algorithm's own metrics, from the losses of two transitions; empty for other data than ours."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, OfflineDataModule):
        return set()
    sampler = TransitionSampler(
        data.dataset, 2, data.seed, device=model.device, span=data.span, storage="cpu", spec=model.update_spec
    )
    plugin = trainer.precision_plugin
    batch, noise = (at_update(each, 0) for each in plugin.convert_input(sampler.chunk(0, 1)))
    with plugin.forward_context(), evaluation_mode(model), torch.no_grad():
        losses = model.losses(batch, noise, model.current_inputs())
    groups = model.parameter_groups()
    keys = {f"train/{name}" for name in losses.metrics}
    keys |= {f"train/learning_rate/{group.name}" for group in groups}
    keys |= {f"train/gradient_norm/{group.clipped_with or group.name}" for group in groups}
    if data.dataset.validation is not None and trainer.enable_validation:
        keys |= {f"val/{name}" for name in losses.metrics}
        keys |= {"val/attention_entropy/*"} if "attention_entropy" in losses.diagnostics else set()
    return keys


class _Replacement:
    """Runs in place of a callback's own hook, until `release_callbacks`."""

    def __init__(self, own: Hook, run: Callable[..., None]) -> None:
        self.own = own
        self._run = run

    def __call__(self, *arguments: Any, **named: Any) -> None:
        self._run(self.own, *arguments, **named)


def _replace(callback: Callback, hook: str, run: Callable[..., None]) -> None:
    """Has ``run`` called with the callback's own hook and the hook's arguments, in place of the hook."""
    setattr(callback, hook, _Replacement(_own(callback, hook), run))


def _own(callback: Callback, hook: str) -> Hook:
    found = getattr(callback, hook)
    return found.own if isinstance(found, _Replacement) else found


def _with_automatic(own: Hook, trainer: Trainer, model: Any, *arguments: Any) -> None:
    own(trainer, _AutomaticallyOptimised(model), *arguments)


def _if_put_off(callback: Callback, own: Hook, *arguments: Any) -> None:
    """Skips a hook that would read a metric a second time, except for a checkpoint that waits for it."""
    if saving_is_put_off(callback):
        own(*arguments)


def _if_trained(model: Any, own: Hook, *arguments: Any) -> None:
    if model.has_trained:
        own(*arguments)


def _ignore(*_: Any, **__: Any) -> None:
    pass


def _monitor(callback: Callback) -> str | None:
    monitor = getattr(callback, "monitor", None)
    return monitor if isinstance(monitor, str) else None


def logged_keys(part: object) -> tuple[str, ...]:
    """Keys that a callback says it logs; other kinds of attribute of that name mean something else."""
    keys = getattr(part, "logs", ())
    return keys if isinstance(keys, tuple) else ()


def may_log(part: object) -> bool:
    """Whether a user's callback or model calls something that logs, under names that only it knows."""
    known = ("lightning.", "tql_lightning.", "torch.")
    foreign = [kind for kind in type(part).__mro__ if not kind.__module__.startswith(known)]
    functions = [
        each
        for holder in (part, *foreign)
        for name, each in vars(holder).items()
        if isfunction(each) and not (name == "losses" and isinstance(part, LightningModule))  # calls torch.log
    ]
    return not logged_keys(part) and any(LOG_CALLS & set(each.__code__.co_names) for each in functions)


def _require_multiple(callback: Callback, every: int, of: int, name: str) -> None:
    if every % of:
        raise ValueError(
            f"{type(callback).__name__}.every_n_train_steps: expected a multiple of {name}={of}, found {every}"
        )


def _unknown(callback: Callback, monitor: str, keys: Iterable[str]) -> ValueError:
    close = difflib.get_close_matches(monitor, list(keys), n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    folders: dict[str, list[str]] = {}
    for key in sorted(keys):
        folder, _, name = key.partition("/")
        folders.setdefault(folder, []).append(name)
    lines = [f"{folder}/: {', '.join(names)}" for folder, names in folders.items()]
    return ValueError(
        f"{type(callback).__name__}.monitor: expected a metric that this run logs, found {monitor}{hint}\n"
        + "\n".join([*lines, f"Change it, leave {type(callback).__name__} out, or add the callback that logs it."])
    )
