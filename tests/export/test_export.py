"""Files that `tql export` writes, and checkpoints that it refuses."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.test_policy import OBSERVATIONS, trained
from tests.marks import slow_after
from tql_lightning import Policy
from tql_lightning.algorithms.tql import TQL
from tql_lightning.export.comparison import ExportError
from tql_lightning.export.writer import export_checkpoint
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.policy import Actor, FlowPolicy
from tql_lightning.nn.policy_extraction import Extraction
from tql_lightning.nn.value_loss import HLGauss
from tql_lightning.run.checkpoint_file import CheckpointError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("extraction", slow_after(1, ["best_of_n", "implicit", "behaviour_flow"]))
def test_every_extraction_leaves(extraction: Extraction, checkpoint: Path, tmp_path: Path) -> None:
    exported = export_checkpoint(checkpoint, tmp_path / "policy", "torch", extraction)
    assert exported.largest_difference <= 1e-5
    policy = Policy.load(exported.folder)
    assert policy.noise_shape == ((1,) if extraction == "behaviour_flow" else (4, 1))
    assert policy.act(OBSERVATIONS).shape == (5, 1)


@pytest.mark.slow
def test_best_of_n_leaves_as_onnx_with_any_parts_of_the_critic(tmp_path: Path) -> None:
    critic = partial(TransformerCritic, hidden_dim=16, head_dim=8, num_layers=1, norm=torch.nn.RMSNorm)
    policy = partial(FlowPolicy, hidden_dims=(16,), flow_steps=2, num_samples=3)
    settings: dict[str, Any] = {"critic": critic, "extraction": "best_of_n", "policy": policy}
    settings |= {"value_loss": partial(HLGauss, num_bins=11), "reward_range": (-1.0, 1.0)}
    path = trained(tmp_path / "run", **settings)
    exported = export_checkpoint(path, tmp_path / "policy")
    assert exported.largest_difference <= 1e-5
    assert Policy.load(exported.folder).noise_shape == (3, 1)
    with pytest.raises(ExportError, match=r"found other parts in model\.critic \(norm\); use --format onnx"):
        export_checkpoint(path, tmp_path / "as_torch", "torch")
    assert not (tmp_path / "as_torch").exists()


class OwnPolicy(FlowPolicy):
    """A policy of a user's class."""


def test_a_policy_of_ones_own_is_refused_as_torch(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", policy=partial(OwnPolicy, hidden_dims=(8,), flow_steps=1))
    with pytest.raises(ExportError, match="found OwnPolicy; use --format onnx"):
        export_checkpoint(path, tmp_path / "policy", "torch")


class OwnActor(TQL):
    """Acts in a way of its own."""

    def actor(self, extraction: str | None = None) -> Actor:
        return Actor((1,), self.one_step_actions)


class Branching(TQL):
    """Acts by Python's decision on a value."""

    def actor(self, extraction: str | None = None) -> Actor:
        def act(observations: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return observations[:, :1].tanh() if float(observations.max()) > 0.0 else observations[:, 1:2].tanh()

        return Actor((1,), act)


def test_an_actor_of_ones_own_is_refused_as_torch(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", kind=OwnActor)
    with pytest.raises(ExportError, match=r"found another one of OwnActor; use --format onnx"):
        export_checkpoint(path, tmp_path / "policy", "torch")


def test_an_actor_that_torch_cannot_write_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", kind=Branching)
    with pytest.raises(ExportError, match="format onnx: expected an actor of torch operations"):
        export_checkpoint(path, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_an_extraction_that_the_model_does_not_know_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="extraction: expected fql or best_of_n or implicit or behaviour_flow, found best"
    ):
        export_checkpoint(checkpoint, tmp_path / "policy", extraction="best")


def test_what_differs_from_the_checkpoint_is_not_left_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = Policy.act

    def slightly_off(self: Policy, observations: Any, **options: Any) -> Any:
        return act(self, observations, **options) + np.float32(1e-4)

    monkeypatch.setattr(Policy, "act", slightly_off)
    with pytest.raises(ExportError, match=r"differs from the checkpoint's by 5.*e-05 at batch 1 .*nothing was written"):
        export_checkpoint(checkpoint, tmp_path / "policy", "torch")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="not an empty folder"):
        export_checkpoint(checkpoint, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


class _Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("a stranger's code ran",)


def _raw(checkpoint: Path) -> dict[str, Any]:
    raw: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return raw


def _hyperparameters(raw: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return raw | {"hyper_parameters": raw["hyper_parameters"] | changes}


FOREIGN = {
    "text": (lambda _: b"not a checkpoint", r"damaged, or holds more than weights \(it is no file of torch\.save\)"),
    "empty": (lambda _: b"", "damaged"),
    "code": (lambda _: _Exploit(), r"damaged, or holds more than weights \(it refers to .*print\)"),
    "cut short": (lambda raw: raw, "damaged"),
    "weights alone": (lambda raw: raw["state_dict"], "expected one that tql fit wrote"),
    "of another model": (
        lambda raw: raw | {"state_dict": {"layer.weight": torch.zeros(2)}},
        "does not fit its model",
    ),
    "without sizes": (lambda raw: raw | {"hyper_parameters": {}}, "does not fit its model"),
    "hyperparameters of no kind": (
        lambda raw: raw | {"hyper_parameters": 3},
        "hyper_parameters: expected a dict, found int",
    ),
    "an unknown setting": (lambda raw: _hyperparameters(raw, taau=1.0), "does not fit its model"),
    "another size": (lambda raw: _hyperparameters(raw, observation_dim=4), "does not fit its model"),
    "a class that is not there": (
        lambda raw: _hyperparameters(raw, critic={"class_path": "nowhere.Critic"}),
        "does not fit its model",
    ),
    "a class that is no critic": (
        lambda raw: _hyperparameters(raw, critic={"class_path": "os.system", "init_args": {"command": "true"}}),
        "does not fit its model",
    ),
    "weights that are not numbers": (
        lambda raw: raw | {"state_dict": {name: each * torch.nan for name, each in raw["state_dict"].items()}},
        "hold NaN or infinite numbers",
    ),
}


@pytest.mark.parametrize(("make", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_malformed_or_foreign_checkpoint_is_refused_with_the_reason(
    make: Any, message: str, checkpoint: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "foreign.ckpt"
    content = make(_raw(checkpoint))
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    if "cut short" in request.node.name:
        path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=re.escape(str(path)) + ".*" + message):
        export_checkpoint(path, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()
