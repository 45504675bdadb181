"""When Lightning's backward pass is called, and when a plain one is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy

from tests.toy import fit, toy_model
from tql_lightning.loops import hears_backward
from tql_lightning.tql import TQL


class CountBackward(Callback):
    """Counts backward passes."""

    def __init__(self) -> None:
        self.passes = 0

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.passes += 1


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
    ("settings", "heard"),
    [
        ({}, False),
        ({"precision": "bf16-mixed"}, False),
        ({"callbacks": [Callback()]}, False),
        ({"callbacks": [CountBackward()]}, True),
        ({"profiler": "simple"}, True),
        ({"strategy": "ddp"}, True),
        ({"strategy": OwnStrategy("cpu")}, True),
        ({"plugins": [scaler()]}, True),
    ],
)
def test_lightnings_backward_is_called_where_somebody_hears_it(
    tmp_path: Path, settings: dict[str, Any], heard: bool
) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **(quiet | settings))
    assert hears_backward(trainer, toy_model()) is heard


@pytest.mark.parametrize("model", [OwnBackward, OwnManualBackward])
def test_a_models_own_backward_is_called(tmp_path: Path, model: type[TQL]) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    assert hears_backward(trainer, model(3, 1))


def test_every_backward_pass_is_heard(tmp_path: Path) -> None:
    count = CountBackward()
    fit(tmp_path, toy_model(), updates=7, callbacks=[count])
    assert count.passes == 7
