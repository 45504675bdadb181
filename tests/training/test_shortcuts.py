"""When Lightning's backward pass and optimizer step are called, and when plain ones are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy

from tests.toy import fit, toy_model
from tql_lightning.algorithms.tql import TQL
from tql_lightning.training.skipped_hooks import hears_backward, hears_step
from tql_lightning.training.update import UpdateStep


class CountBackward(Callback):
    """Counts backward passes."""

    def __init__(self) -> None:
        self.passes = 0

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.passes += 1


class CountSteps(Callback):
    """Counts steps, and the gradients that are there before them."""

    def __init__(self) -> None:
        self.steps = 0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        assert isinstance(optimizer, torch.optim.AdamW)
        assert all(parameter.grad is not None for parameter in pl_module.policy.parameters())
        self.steps += 1


class OwnStep(TQL):
    """A user's model that looks at gradients itself."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)


class OwnBackward(TQL):
    """A user's model with a backward pass of its own."""

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward(*args, **kwargs)


class OwnManualBackward(TQL):
    """The same, where manual optimisation calls it."""

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward(*args, **kwargs)


class OwnStrategy(SingleDeviceStrategy):
    """A user's strategy, which may hear anything."""


def scaler() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize(
    ("settings", "backward", "step"),
    [
        ({}, False, False),
        ({"precision": "bf16-mixed"}, False, False),
        ({"callbacks": [Callback()]}, False, False),
        ({"callbacks": [CountBackward()]}, True, False),
        ({"callbacks": [LambdaCallback(on_before_optimizer_step=print)]}, False, True),
        ({"callbacks": [CountSteps()]}, False, True),
        ({"profiler": "simple"}, True, True),
        ({"strategy": "ddp"}, True, True),
        ({"strategy": OwnStrategy("cpu")}, True, True),
        ({"plugins": [scaler()]}, True, True),
    ],
)
def test_lightnings_backward_and_step_are_called_where_somebody_hears_them(
    tmp_path: Path, settings: dict[str, Any], backward: bool, step: bool
) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **(quiet | settings))
    assert hears_backward(trainer, toy_model()) is backward
    assert hears_step(trainer, toy_model(), UpdateStep) is step


@pytest.mark.parametrize("model", [OwnBackward, OwnManualBackward])
def test_a_models_own_backward_is_called(tmp_path: Path, model: type[TQL]) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    assert hears_backward(trainer, model(3, 1))


def test_a_models_own_hook_before_the_step_is_called_by_lightning(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    assert hears_step(trainer, OwnStep(3, 1), UpdateStep)
    assert not hears_step(trainer, TQL(3, 1), UpdateStep)


def test_every_backward_pass_is_heard(tmp_path: Path) -> None:
    count = CountBackward()
    fit(tmp_path, toy_model(), updates=7, callbacks=[count])
    assert count.passes == 7


def test_every_step_is_heard(tmp_path: Path) -> None:
    count = CountSteps()
    fit(tmp_path, toy_model(), updates=7, callbacks=[count])
    assert count.steps == 7


def test_steps_are_counted_clipped_and_saved_whether_or_not_somebody_hears_them(tmp_path: Path) -> None:
    checkpoints = []
    for callback in (Callback(), CountSteps()):
        model = toy_model(gradient_clip_norm=0.1)
        trainer = fit(tmp_path, model, updates=7, callbacks=[callback])
        assert model._hears_step is isinstance(callback, CountSteps)
        assert trainer.global_step == 7
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        checkpoints.append(torch.load(tmp_path / "end.ckpt", weights_only=True))
    unheard, heard = checkpoints
    assert unheard["loops"] == heard["loops"]
    assert unheard["lr_schedulers"] == heard["lr_schedulers"]
    assert all(torch.equal(tensor, heard["state_dict"][name]) for name, tensor in unheard["state_dict"].items())
