"""Attention maps, Q landscapes and throughput: what a run gets of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.toy import fit, toy_chunk, toy_dataset, toy_model
from tql_lightning.callbacks import throughput
from tql_lightning.callbacks.attention_entropy import AttentionEntropyMonitor
from tql_lightning.callbacks.attention_map import AttentionMap
from tql_lightning.callbacks.observing import fixed_transitions
from tql_lightning.callbacks.q_landscape import QLandscape
from tql_lightning.callbacks.throughput import ROWS, Throughput, device_peak, flops_of_update
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.sampler import ValidationPass
from tql_lightning.evaluation.landscape import smoothness
from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.loggers.media import read_picture
from tql_lightning.loggers.tensorboard_logger import ContinuedTensorBoardLogger
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.report.pictures import attention_map_figure, q_landscape_figure
from tql_lightning.run.folder import ATTENTION_MAP, Q_LANDSCAPE, picture_files
from tql_lightning.run.metrics_csv import read_metrics


@pytest.mark.slow
def test_pictures_are_drawn_before_at_every_interval_and_after_the_last_update(tmp_path: Path) -> None:
    model = toy_model()
    loggers = [ContinuedCSVLogger(str(tmp_path)), ContinuedTensorBoardLogger(str(tmp_path))]
    fit(tmp_path, model, 15, [AttentionMap(10), QLandscape(10, transitions=50)], logger=loggers)
    shown = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    for kind in (ATTENTION_MAP, Q_LANDSCAPE):
        pictures = picture_files(tmp_path, kind)
        assert list(pictures) == [0, 10, 15]
        assert [image.step for image in shown.Images(kind)] == [0, 10, 15]
        assert not np.array_equal(*(read_picture(pictures[update]) for update in (0, 15)))
    series = read_metrics(tmp_path / "metrics.csv")
    rows = torch.linspace(0, len(toy_dataset()) - 1, 50).long().numpy()
    pairs = (torch.as_tensor(values[rows]) for values in (toy_dataset().observations, toy_dataset().actions))
    slope, roughness = smoothness(model.critic, *pairs)
    assert series["train/q_roughness"] == ([0, 10, 15], pytest.approx([*series["train/q_roughness"][1][:2], roughness]))
    assert series["train/q_slope"][1][-1] == pytest.approx(slope)


@pytest.mark.slow
def test_chunks_of_actions_are_looked_at_as_they_are_trained_on(tmp_path: Path) -> None:
    model = toy_model(action_chunk=3)
    logger = ContinuedCSVLogger(str(tmp_path))
    callbacks: list[Callback] = [AttentionMap(5), QLandscape(5), AttentionEntropyMonitor(transitions=8)]
    fit(tmp_path, model, 5, callbacks, logger=logger, log_every_n_steps=5, data={"n_step": 2, "action_chunk": 3})
    for kind in (ATTENTION_MAP, Q_LANDSCAPE):
        assert list(picture_files(tmp_path, kind)) == [0, 5]
    assert "train/head_entropy/layer_0/others/head_0" in read_metrics(tmp_path / "metrics.csv")
    data = OfflineDataModule(toy_dataset(), action_chunk=3)
    observations, actions = fixed_transitions(data, 4, model)
    windows = ValidationPass(toy_dataset(), 10_000, 0, span=data.span)
    every = next(iter(windows))[0]
    rows = torch.linspace(0, len(every.rewards) - 1, 4).long()
    assert torch.equal(observations, every.observations[rows])
    assert torch.equal(actions, every.actions[rows])


def test_colours_and_scales_mean_the_same_across_layers_and_rows() -> None:
    collapsed, uniform = np.eye(5, dtype=np.float32), np.full((5, 5), 0.2, dtype=np.float32)
    shown = [axis.images[0] for axis in attention_map_figure([uniform, collapsed], 3, 0).axes if axis.images]
    assert {image.get_clim() for image in shown} == {(0.0, 1.0)}
    curves = np.stack([np.linspace(0, 1, 5), np.linspace(10, 30, 5)])[:, None].repeat(2, axis=1)
    curves[0, 0, 3:] = np.nan  # beyond the bounds
    axes = q_landscape_figure(curves, np.linspace(-0.5, 0.5, 5), (0,), 0, 0.1).axes
    assert [axis.get_ylim() for axis in axes] == [(-1.5, 31.5)] * 4
    two = np.stack([values[..., None] + np.arange(5.0) for values in curves])
    axes = q_landscape_figure(two, np.arange(5.0), (1, 0), 0, 0.1).axes
    assert [axis.collections[0].get_clim() for axis in axes if axis.lines] == [(0.0, 34.0)] * 4


def test_a_critic_without_attention_has_a_landscape_and_no_map(tmp_path: Path) -> None:
    model = toy_model(critic=partial(MLPCritic, hidden_dims=(8,)))
    fit(tmp_path, model, 5, [AttentionMap(5), QLandscape(5)])
    assert picture_files(tmp_path, ATTENTION_MAP) == {}
    assert list(picture_files(tmp_path, Q_LANDSCAPE)) == [0, 5]


class Clock(Callback):
    """Two seconds an update, and a hundred for whatever comes between chunks of them."""

    now = 0.0

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.now += 2.0

    def on_train_batch_end(self, *_: Any) -> None:
        self.now += 100.0


def test_throughput_is_that_of_the_updates_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    logger = ContinuedCSVLogger(str(tmp_path))
    fit(tmp_path, toy_model(), 20, [Throughput(), clock], logger=logger, log_every_n_steps=10)
    series = read_metrics(tmp_path / "metrics.csv")
    assert series["train/updates_per_second"] == ([10, 20], [0.5, 0.5])
    assert series["train/samples_per_second"][1] == [8.0, 8.0]
    assert 0.05 < series["train/memory_gb"][1][0] < 50.0
    assert "train/model_flops_utilization" not in series  # a CPU's peak is not known


def test_operations_of_an_update_are_counted_and_leave_no_gradient() -> None:
    model = toy_model(critic=partial(MLPCritic, hidden_dims=(8,)))
    batches, noises = toy_chunk(model, updates=2, batch_size=4)
    flops = flops_of_update(model, batches, noises)
    critic, policy = 2 * (4 * 8 + 8) * 2, (4 * 16 + 16) * 2  # of one pass over one transition
    flow = (5 * 16 + 16) * 2
    passes = {
        "target": critic + policy,
        "critic, forward and backward": 3 * critic - 2 * 2 * 4 * 8,  # nobody wants the inputs' gradient
        "flow": 3 * flow - 2 * 5 * 16,
        "teacher": 2 * flow,
        "student": 3 * policy - 2 * 4 * 16,
        "q term": 2 * critic,
    }
    assert flops == pytest.approx(ROWS * sum(passes.values()), rel=0.1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_utilisation_is_operations_per_second_over_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(throughput, "device_peak", lambda *_: 1e6)
    monkeypatch.setattr(throughput, "flops_of_update", lambda *_: 3e5 * ROWS)
    logger = ContinuedCSVLogger(str(tmp_path))
    fit(tmp_path, toy_model(), 10, [Throughput(), clock], logger=logger, log_every_n_steps=10)
    # Half an update a second, 16 rows each, 3e5 operations a row: 2.4e6 a second.
    assert read_metrics(tmp_path / "metrics.csv")["train/model_flops_utilization"] == ([10], [pytest.approx(2.4)])


@pytest.mark.parametrize(
    ("name", "precision", "float32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", "highest", 989e12),
        ("NVIDIA H100 80GB HBM3", "32-true", "high", 494e12),
        ("NVIDIA H100 80GB HBM3", "32-true", "highest", 67e12),
        ("NVIDIA H100 80GB HBM3", "64-true", "highest", None),
        ("NVIDIA H100 PCIe", "bf16-true", "highest", 756e12),
        ("NVIDIA A100-SXM4-80GB", "16-mixed", "highest", 312e12),
        ("NVIDIA L40S", "32-true", "highest", 91.6e12),
        ("NVIDIA L40", "32-true", "highest", 90.5e12),
        ("NVIDIA L4", "32-true", "highest", 30.3e12),
        ("NVIDIA A10G", "32-true", "highest", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "32-true", "highest", None),
    ],
)
def test_a_peak_is_that_of_the_device_and_the_precision(
    name: str, precision: str, float32: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: float32)
    assert device_peak(torch.device("cuda"), precision) == peak
    assert device_peak(torch.device("cpu"), precision) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionMap(0), r"AttentionMap.every_n_updates: expected at least 1, found 0"),
        (lambda: AttentionMap(7), r"AttentionMap.every_n_updates: expected a multiple"),
        (lambda: QLandscape(5, transitions=2), r"QLandscape.transitions: expected at least 3, found 2"),
        (lambda: QLandscape(5, radius=0.0), r"QLandscape.radius"),
        (lambda: QLandscape(5, dimensions=(0, 1)), r"QLandscape.dimensions: expected two different ones of 0 to 0"),
    ],
)
def test_settings_out_of_range_are_refused_before_training(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, toy_model(), 5, [make()])
