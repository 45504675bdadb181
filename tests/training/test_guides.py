"""Self-guided layers in training: schedules count updates, runs continue exactly, finished guides leave no trace."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command_line import TINY, call_tql
from tests.toy import fit, toy_model
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.algorithms.tql import TQL
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.structured import LowRankLinear, SelfGuide, guided_layers
from tql_lightning.nn.structured_feedforward import StructuredFeedForward
from tql_lightning.nn.transformer import TransformerBlock
from tql_lightning.run.checkpoint_io import read_checkpoint

GUIDED = """
model:
  critic:
    class_path: tql_lightning.nn.critic.TransformerCritic
    init_args:
      block:
        class_path: tql_lightning.nn.transformer.TransformerBlock
        init_args:
          feedforward:
            class_path: tql_lightning.nn.structured_feedforward.StructuredFeedForward
            init_args:
              linear:
                class_path: tql_lightning.nn.structured.BlockDenseLinear
                init_args:
                  guide: {updates: 5, form: linear}
"""


def guided_model(updates: int, **settings: Any) -> TQL:
    feedforward = partial(
        StructuredFeedForward, dense_blocks=0, linear=partial(LowRankLinear, guide=SelfGuide(updates, "linear"))
    )
    block = partial(TransformerBlock, feedforward=feedforward)
    return toy_model(critic=partial(TransformerCritic, hidden_dim=16, head_dim=8, block=block), **settings)


@pytest.mark.parametrize("updates", [3, 5, 7, 20])
def test_a_guided_run_stops_and_continues_bit_for_bit(tmp_path: Path, updates: int) -> None:
    """The guide is over before the stop, at it, after it and not at all."""
    whole, first, rest = (guided_model(updates) for _ in range(3))
    fit(tmp_path, whole, updates=10).save_checkpoint(tmp_path / "whole.ckpt")
    fit(tmp_path, first, updates=5).save_checkpoint(tmp_path / "stop.ckpt")
    fit(tmp_path, rest, updates=10, ckpt_path=tmp_path / "stop.ckpt").save_checkpoint(tmp_path / "rest.ckpt")
    states = [read_checkpoint(tmp_path / f"{name}.ckpt") for name in ("whole", "rest")]
    weights = [state["state_dict"] for state in states]
    assert weights[0].keys() == weights[1].keys()
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []
    moments = [state["optimizer_states"][0]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    loaded = TQL.load_from_checkpoint(tmp_path / "whole.ckpt", weights_only=True)
    observations, actions = torch.ones(2, 3), torch.zeros(2, 1)
    assert torch.equal(loaded.critic(observations, actions).values, whole.critic(observations, actions).values)
    assert {int(layer.updates) for layer in guided_layers(whole)} == {10}  # of critic and target critic


def test_a_finished_guide_is_in_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    """Neither its weights nor its moments, which are twice as many."""
    sizes = {}
    for updates in (5, 20):
        model = guided_model(updates)
        fit(tmp_path, model, updates=5).save_checkpoint(tmp_path / "run.ckpt")
        raw = read_checkpoint(tmp_path / "run.ckpt")
        guides = [name for name in raw["state_dict"] if name.endswith(".guide")]
        sizes[updates] = (len(guides), len(raw["optimizer_states"][0]["state"]))
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    assert sizes == {5: (0, trained - 4), 20: (8, trained)}  # two maps in each of two blocks; the target's guides too


def test_a_finished_guide_is_not_computed_any_more(tmp_path: Path) -> None:
    model = guided_model(4)
    fit(tmp_path, model, updates=3)
    assert {layer.guide_in_graph for layer in guided_layers(model)} == {True}
    model = guided_model(4)
    fit(tmp_path, model, updates=4)
    assert {layer.guide_in_graph for layer in guided_layers(model)} == {False}


def test_the_first_update_moves_the_guides_and_not_the_factors(tmp_path: Path) -> None:
    model = guided_model(4, weight_decay=0.0)
    before = {name: parameter.clone() for name, parameter in model.critic.named_parameters()}
    fit(tmp_path, model, updates=1, updates_per_step=1)
    moved: dict[str, set[bool]] = {"guide": set(), "first": set(), "second": set()}
    for name, parameter in model.critic.named_parameters():
        if (kind := name.rpartition(".")[2]) in moved:
            moved[kind].add(not torch.equal(parameter, before[name]))
    assert moved == {"guide": {True}, "first": {False}, "second": {False}}


@pytest.mark.slow
def test_a_guide_is_set_by_configuration_and_its_checkpoint_loads(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "guided.yaml").write_text(GUIDED)
    configured = ("--config", "tiny.yaml", "--config", "guided.yaml", "--data.dataset=tests.toy.toy_dataset")
    finished = call_tql(tmp_path, "fit", *configured, "--trainer.max_steps=6")
    assert finished.returncode == 0, finished.stderr
    model, raw = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert {(layer.schedule, int(layer.updates)) for layer in guided_layers(model)} == {(SelfGuide(5, "linear"), 6)}
    assert not any(name.endswith(".guide") for name in raw["state_dict"])
