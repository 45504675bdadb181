"""What a run saves can be read back: converted, or refused before training with its name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.toy import fit, toy_model
from tests.user_models import IQL
from tql_lightning import TQL, Algorithm, TransformerCritic
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import read_checkpoint, write_checkpoint


class Stateful(Callback):
    """Has a state, as users' callbacks do."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}


def saved(folder: Path, model: TQL, *callbacks: Callback) -> Path:
    """The checkpoint of two updates."""
    fit(
        folder,
        model,
        2,
        [*callbacks, ModelCheckpoint(folder, save_last=True, every_n_train_steps=2)],
        updates_per_step=1,
    )
    return folder / "last.ckpt"


def test_a_callbacks_state_is_read_back_as_plain_values(tmp_path: Path) -> None:
    given = {"scalar": np.float32(0.5), "path": Path("a"), "nested": {"n": [np.int64(1)]}, "array": np.arange(2)}
    found = read_checkpoint(saved(tmp_path, toy_model(), Stateful(given)))["callbacks"]["Stateful"]["value"]
    assert torch.equal(found.pop("array"), torch.arange(2))
    assert found == {"scalar": 0.5, "path": "a", "nested": {"n": [1]}}
    assert [type(value) for value in found.values()] == [float, str, dict]


UNREADABLE = {
    "object": object(),
    "long number": 1 << 300,
    "objects": np.array([None]),
    "sparse": torch.eye(2).to_sparse(),
    "meta": torch.ones(1, device="meta"),
    "nested": torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged),
}


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE)
def test_a_callbacks_state_that_cannot_be_read_back_is_refused_before_the_first_update(
    value: Any, tmp_path: Path
) -> None:
    model = toy_model()
    before = [weight.clone() for weight in model.parameters()]
    with pytest.raises(ValueError, match=r"^callback Stateful: state_dict"):
        saved(tmp_path, model, Stateful(value))
    assert all(map(torch.equal, before, model.parameters()))
    assert not list(tmp_path.glob("*.ckpt"))


class Adds(Callback):
    """Writes into checkpoints directly."""

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = {"a": self}


def test_an_entry_of_a_checkpoint_that_cannot_be_read_back_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^checkpoint: mine\.a: expected what a checkpoint .* found Adds"):
        saved(tmp_path, toy_model(), Adds())


def test_settings_of_numpy_are_saved_as_numbers(tmp_path: Path) -> None:
    critic = partial(TransformerCritic, hidden_dim=np.int64(16), head_dim=np.int32(8))
    model = toy_model(
        critic=critic, discount=np.float64(0.9), learning_rate=np.float32(1e-3), warmup_updates=np.int64(3)
    )
    path = saved(tmp_path, model)
    loaded, raw = load_checkpoint(path)
    assert loaded.discount == 0.9
    assert type(raw["hyper_parameters"]["discount"]) is float
    assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("warmup_updates", 1e3, "model.optimisation.warmup_updates: expected int, found 1000.0"),
        ("discount", torch.tensor(0.9), "model.discount: expected float, found tensor"),
        ("discount", True, "model.discount: expected float, found True"),
        ("tau", np.array(0.5), "model.tau: expected float, found array"),
        ("critic", partial(TransformerCritic, hidden_dim=16.0), "model.critic.hidden_dim: expected int, found 16.0"),
    ],
)
def test_a_number_of_another_type_than_it_would_be_read_back_with_is_refused(
    name: str, value: Any, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        toy_model(**{name: value})


def module_level_critic(observation_dim: int, action_dim: int) -> MLPCritic:
    return MLPCritic(observation_dim, action_dim)


@pytest.mark.filterwarnings("ignore:Attribute 'critic' is an instance")
@pytest.mark.parametrize(
    "critic",
    [
        lambda *sizes: MLPCritic(*sizes, hidden_dims=(8,)),
        module_level_critic,
        partial(module_level_critic),
        MLPCritic(3, 1),
    ],
    ids=["lambda", "function", "partial of a function", "object"],
)
def test_a_part_that_no_checkpoint_can_name_is_refused_when_the_model_is_made(critic: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"model\.critic: expected a class or a functools\.partial"):
        TQL(3, 1, critic=critic)


def test_a_class_that_no_module_has_is_refused_when_the_model_is_made() -> None:
    class Local(MLPCritic):
        pass

    with pytest.raises(ValueError, match=r"model\.critic: expected a class .* found .*<locals>\.Local; define a class"):
        TQL(3, 1, critic=Local)


def test_loading_by_the_class_checks_the_file_and_takes_new_settings(tmp_path: Path) -> None:
    model = toy_model()
    path = saved(tmp_path, model)
    for kind in (TQL, Algorithm):
        loaded = kind.load_from_checkpoint(path, weights_only=True, discount=0.5)
        assert isinstance(loaded, TQL)
        assert loaded.discount == 0.5
        assert loaded.training
        assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))
    with pytest.raises(CheckpointError, match=r"expected one of tests.user_models.IQL, found one of .*TQL"):
        IQL.load_from_checkpoint(path)
    with pytest.raises(ValueError, match="weights_only true"):
        TQL.load_from_checkpoint(path, weights_only=False)


@pytest.mark.parametrize("key", ["algorithm", "hparams", "_instantiator", "critic", "checksum"])
def test_loading_by_the_class_runs_nothing_that_a_file_names(key: str, tmp_path: Path) -> None:
    path = saved(tmp_path, toy_model())
    raw = read_checkpoint(path)
    settings = raw["hyper_parameters"]
    fly = {"class_path": "antigravity.fly", "init_args": {}}
    changes = {"algorithm": raw, "hparams": raw, "_instantiator": settings, "critic": settings}
    if key in changes:
        changes[key][key] = fly if key in ("hparams", "critic") else "antigravity.fly"
    write_checkpoint(raw, path)
    if key == "checksum":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(CheckpointError):
        TQL.load_from_checkpoint(path)
