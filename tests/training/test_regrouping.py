"""Settings that earlier versions held flat: their checkpoints load, and old options are answered with the new ones."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.algorithms.test_opponents import CRITIC, GAUSSIAN, VALUE
from tests.toy import fit, toy_dataset
from tql_lightning.algorithms.floq import Floq, ReturnFlow
from tql_lightning.algorithms.iql import IQL
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.algorithms.q_transformer import QTransformer, Returns
from tql_lightning.algorithms.qc import QC
from tql_lightning.algorithms.rebrac import ReBRAC, Smoothing
from tql_lightning.cli.close_names import close_options, option_names
from tql_lightning.cli.model import ModelParser
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.run.checkpoint_io import read_checkpoint, write_checkpoint
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.hyperparameters import NOW_IN, loadable, regrouped
from tql_lightning.training.problem import Problem
from tql_lightning.training.resuming import refuse_changes

PROBLEM = Problem(1, (-3.0, 0.0), (1.0, 2.0))
EXPLORING = partial(GAUSSIAN, acting_temperature=0.5, exploration_temperature=2.0)
MODELS: dict[str, tuple[type[Algorithm], dict[str, Any]]] = {
    "IQL": (IQL, {"critic": CRITIC, "value": VALUE, "policy": EXPLORING}),
    "ReBRAC": (ReBRAC, {"critic": CRITIC, "policy": EXPLORING, "smoothing": Smoothing(0.3, 0.4)}),
    "QC": (QC, {"critic": CRITIC}),
    "floq": (Floq, {"critic": CRITIC, "return_flow": ReturnFlow(4, 0.2, 0.3, train_at_zero_only=True)}),
    "Q-Transformer": (QTransformer, {"returns": Returns(monte_carlo=False, release_returns=True)}),
}


def flattened(settings: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's settings as earlier versions wrote them."""
    flat = {name: value for name, value in settings.items() if name not in {*NOW_IN.values()} - {"policy"}}
    for name, group in NOW_IN.items():
        if name in settings.get(group, {}).get("init_args", {}):
            flat[name] = settings[group]["init_args"][name]
    if "policy" in flat:
        own = {name: value for name, value in flat["policy"]["init_args"].items() if name not in NOW_IN}
        flat["policy"] = flat["policy"] | {"init_args": own}
    return flat


@pytest.mark.parametrize("name", MODELS)
def test_flat_settings_go_to_their_groups(name: str) -> None:
    kind, settings = MODELS[name]
    now = loadable(dict(kind(3, 1, problem=PROBLEM, **settings).hparams), kind)
    flat = flattened(now)
    assert {"action_chunk", "reward_range", "final_reward_range"} <= flat.keys()
    assert not {"problem", "smoothing", "return_flow", "returns"} & flat.keys()
    assert regrouped(flat, kind) == now
    assert regrouped(now, kind) == now


def test_a_checkpoint_with_flat_settings_loads(tmp_path: Path) -> None:
    kind, settings = MODELS["IQL"]
    fit(tmp_path, kind(3, 1, problem=PROBLEM, **settings), 1).save_checkpoint(tmp_path / "new.ckpt")  # type: ignore[arg-type]
    raw = read_checkpoint(tmp_path / "new.ckpt")
    write_checkpoint(raw | {"hyper_parameters": flattened(raw["hyper_parameters"])}, tmp_path / "old.ckpt")
    model: Any = load_checkpoint(tmp_path / "old.ckpt")[0]
    assert model.hparams["problem"]["init_args"]["reward_range"] == PROBLEM.reward_range
    assert (model.policy.acting_temperature, model.policy.exploration_temperature) == (0.5, 2.0)


def test_flat_settings_of_a_checkpoint_are_compared_with_grouped_ones() -> None:
    """The command line keeps a group's settings without its class."""
    data, before = OfflineDataModule(toy_dataset()), {"reward_range": (-1.0, 0.0), "action_chunk": 1}
    model = IQL(3, 1, critic=CRITIC, value=VALUE, policy=GAUSSIAN, problem=PROBLEM)
    for problem in (PROBLEM, asdict(PROBLEM)):
        model.hparams["problem"] = problem
        with pytest.raises(ValueError, match=r"model.problem.*reward_range: \(-1.0, 0.0\) in the checkpoint, .*-3.0"):
            refuse_changes(Path("old.ckpt"), {"hyper_parameters": before}, model, data)


@pytest.mark.parametrize("name", MODELS)
def test_an_option_that_is_a_groups_now_is_answered_with_its_new_name(name: str) -> None:
    kind, settings = MODELS[name]
    parser = ModelParser()
    parser.add_lightning_class_args(kind, "model")
    options = option_names(parser)
    moved = {each: group for each, group in NOW_IN.items() if group in settings and group != "problem"}
    for old, group in moved.items():
        assert close_options(f"--model.{old}", options) == [f"--model.{group}.{old}"]


@pytest.mark.parametrize("name", MODELS)
def test_no_algorithm_takes_more_than_15_settings(name: str) -> None:
    kind = MODELS[name][0]
    parser = ModelParser()
    added = parser.add_lightning_class_args(kind, "model")
    assert 5 < len({option.split(".")[1] for option in added}) <= 15
