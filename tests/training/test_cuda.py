"""What only a CUDA device can show: that replayed updates are the updates, and that no update waits for the device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.toy import fit, toy_dataset, toy_model
from tql_lightning.algorithms.tql import TQL
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.data.storage import StorageChoice
from tql_lightning.data.windows import Span
from tql_lightning.nn.temperature import AttentionTemperature, TargetSchedule

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]
MOVING_TARGETS = partial(AttentionTemperature, schedule=TargetSchedule(0.1, 10))


class NeverWaits(Callback):
    """Makes an error of whatever waits for the device, from the second chunk of updates on."""

    def __init__(self) -> None:
        self.chunks = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx > 0:
            self.chunks += 1
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    on_exception = on_train_batch_end


def train(folder: Path, updates: int, precision: str = "32-true", **settings: Any) -> tuple[TQL, NeverWaits]:
    model, watch = toy_model(entropy_control=MOVING_TARGETS, gradient_clip_norm=1.0, **settings), NeverWaits()
    fit(folder, model, updates, [watch], accelerator="gpu", precision=precision, log_every_n_steps=1000)
    return model, watch


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_replayed_training_is_the_training_itself_and_never_waits(
    precision: str, compiled: bool, tmp_path: Path
) -> None:
    (plain, first), (replayed, second) = (
        train(tmp_path, 12, precision, compile=compiled, cuda_graphs=cuda_graphs) for cuda_graphs in (False, True)
    )
    assert first.chunks == second.chunks == 2
    for (name, ours), other in zip(replayed.named_parameters(), plain.parameters(), strict=True):
        if name.endswith("qkv.bias"):  # Adam makes steps of the rounding errors of a gradient of zero
            continue
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("storage", ["trainer", "cpu"])
@pytest.mark.parametrize("span", [Span(), Span(n_step=2, action_chunk=2)])
def test_drawing_minibatches_never_waits(storage: StorageChoice, span: Span) -> None:
    sampler = TransitionSampler(toy_dataset(), 16, 0, "cuda", span=span, storage=storage, spec=toy_model().update_spec)
    first = sampler.chunk(0, 5)  # allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = sampler.chunk(0, 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True):
        assert torch.equal(one, other)
    on_cpu = TransitionSampler(toy_dataset(), 16, 0, span=span, spec=toy_model().update_spec).chunk(0, 5)
    for one, other in zip((*first[0], *first[1]), (*on_cpu[0], *on_cpu[1]), strict=True):
        torch.testing.assert_close(one.cpu(), other)


def test_a_replayed_run_is_continued(tmp_path: Path) -> None:
    settings = {"accelerator": "gpu", "log_every_n_steps": 1000}
    whole = toy_model(cuda_graphs=True)
    fit(tmp_path, whole, 12, **settings)
    fit(tmp_path, toy_model(cuda_graphs=True), 7, **settings).save_checkpoint(tmp_path / "stop.ckpt")
    rest = toy_model(cuda_graphs=True)
    fit(tmp_path, rest, 12, ckpt_path=tmp_path / "stop.ckpt", **settings)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), rest.parameters(), strict=True))
