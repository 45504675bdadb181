"""What the entropy monitor writes."""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from tests.toy import fit, toy_model
from tql_lightning.algorithms.tql import TQL
from tql_lightning.callbacks.attention_entropy import AttentionEntropyMonitor
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.nn.temperature import AttentionTemperature
from tql_lightning.run.metrics_csv import Series, read_metrics


def written(folder: Path, model: TQL) -> Series:
    logger = CSVLogger(folder, name="", version="")
    fit(folder, model, updates=10, callbacks=[AttentionEntropyMonitor()], logger=logger, log_every_n_steps=5)
    logger.save()
    return read_metrics(folder / "metrics.csv")


def test_every_layer_and_token_group_has_entropy_target_and_temperature(tmp_path: Path) -> None:
    control = partial(AttentionTemperature, targets=[(1.0, 1.1), (0.8, 0.9)])
    model = toy_model(entropy_control=control)
    series = written(tmp_path, model)
    before = toy_model(entropy_control=control)  # the last update logs the temperatures that it began with
    fit(tmp_path / "before", before, 9)
    for layer, targets in enumerate([(1.0, 1.1), (0.8, 0.9)]):
        for group, target in zip(("value", "others"), targets, strict=True):
            key = f"layer_{layer}/{group}"
            assert series[f"train/attention_entropy/{key}"][0] == [5, 10]
            assert all(0.0 < value < 1.61 for value in series[f"train/attention_entropy/{key}"][1])
            assert series[f"train/target_entropy/{key}"][1] == pytest.approx([target, target])
            expected = before.temperature()[layer, ("value", "others").index(group)].item()  # type: ignore[misc]
            assert series[f"train/temperature/{key}"][1][-1] == pytest.approx(expected)
            entropy = series[f"train/attention_entropy/{key}"][1][-1]
            assert series[f"train/attention_entropy_distance/{key}"][1][-1] == pytest.approx(entropy - target, abs=1e-6)
            assert series[f"train/attention_entropy_share/{key}"][1][-1] == pytest.approx(entropy / math.log(5))
            heads = [series[f"train/head_entropy/{key}/head_{head}"][1][-1] for head in range(2)]
            assert heads[0] != heads[1]
            assert sum(heads) / 2 == pytest.approx(entropy, abs=0.05)  # of other transitions and one update later


def test_entropy_is_written_also_where_nothing_controls_it(tmp_path: Path) -> None:
    series = written(tmp_path, toy_model(entropy_control=None))
    assert "train/attention_entropy/layer_1/others" in series
    assert not any(name.startswith(("train/temperature/", "train/target_entropy/")) for name in series)


def test_a_critic_without_attention_has_nothing_to_write(tmp_path: Path) -> None:
    series = written(tmp_path, toy_model(critic=partial(MLPCritic, hidden_dims=(8,))))
    assert "train/td_loss" in series
    assert not any("attention_entropy" in name for name in series)


def test_a_layer_that_stays_under_the_floor_is_warned_of_once(tmp_path: Path) -> None:
    model = toy_model()
    with torch.no_grad():
        model.critic.get_submodule("transformer.blocks.0.attention.qkv").weight.mul_(1000.0)  # type: ignore[union-attr, operator]
    monitor = AttentionEntropyMonitor(floor=0.5)
    message = r"collapsing in layer 0: entropy 0\.\d\d of target .* of ln 5 = 1.61.* at update 15.* docs/collapse.md"
    with pytest.warns(UserWarning, match=message) as warned:
        fit(tmp_path, model, updates=30, callbacks=[monitor], log_every_n_steps=5)
    assert sum("collapsing" in str(warning.message) for warning in warned) == 1


def test_a_healthy_run_is_not_warned_of(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="attention is collapsing")
        fit(tmp_path, toy_model(), updates=20, callbacks=[AttentionEntropyMonitor(floor=0.5)], log_every_n_steps=5)


@pytest.mark.parametrize(("settings", "message"), [({"floor": 1.0}, "floor"), ({"transitions": -1}, "transitions")])
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=rf"AttentionEntropyMonitor.{message}: expected"):
        AttentionEntropyMonitor(**settings)  # type: ignore[arg-type]
