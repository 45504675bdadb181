"""Compiled losses: one graph for a whole run, and the numbers of the others."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch._dynamo.utils import counters

from tests.toy import fit, toy_model
from tql_lightning.nn.temperature import AttentionTemperature, TargetSchedule
from tql_lightning.system.private_api import recompilation_raises

# Traces and counts graphs as the default does, and leaves out generating code, which takes minutes.
TRACE_ONLY = partial(torch.compile, backend="eager")
MOVING_TARGETS = partial(AttentionTemperature, schedule=TargetSchedule(0.1, 10))


@pytest.fixture
def _counted() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.slow
@pytest.mark.usefixtures("_counted")
def test_a_run_is_one_graph_also_with_short_chunks_validation_and_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", TRACE_ONLY)
    logger = CSVLogger(tmp_path, name="", version="")
    model = toy_model(compile=True, entropy_control=MOVING_TARGETS)
    resumed = toy_model(compile=True, entropy_control=MOVING_TARGETS)
    with recompilation_raises():
        fit(tmp_path, model, updates=7, logger=logger, log_every_n_steps=2).save_checkpoint(tmp_path / "stop.ckpt")
        fit(tmp_path, resumed, updates=13, updates_per_step=3, ckpt_path=tmp_path / "stop.ckpt")
    assert counters["stats"]["unique_graphs"] == 1

    whole = toy_model(entropy_control=MOVING_TARGETS)
    fit(tmp_path, whole, updates=13)
    for (name, ours), other in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        # Adam makes of rounding errors in gradients of zero steps as long as the learning rate.
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("_counted")
def test_generated_code_gives_the_losses_of_the_uncompiled(tmp_path: Path) -> None:
    models = [toy_model(compile=compiled) for compiled in (True, False)]
    for model in models:
        fit(tmp_path, model, updates=3)
    assert counters["stats"]["unique_graphs"] == 1
    for (name, compiled), plain in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-3, msg=name)
