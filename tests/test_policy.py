"""A policy that has left: it acts as the checkpoint does, without Lightning, and nothing damaged or foreign loads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.test_readme import PYTHON
from tests.toy import fit, toy_model
from tql_lightning import Policy
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.checkpoint_io import CheckpointError
from tql_lightning.comparison import ExportError
from tql_lightning.evaluation import load_checkpoint
from tql_lightning.export import export_checkpoint
from tql_lightning.extraction import Extraction
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.value_loss import HLGauss
from tql_lightning.policy import FILES, METADATA_KEYS, ExportFormat, PolicyError

OBSERVATIONS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def trained(folder: Path, data: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A checkpoint after one step; its data name Pendulum and bounds of -2 and 2."""
    model = toy_model(**({"num_samples": 4} | settings))
    fit(folder, model, 5, [LastCheckpoint(str(folder / "checkpoints"), 5)], env_id="Pendulum-v1", data=data)
    path = folder / "checkpoints" / "last.ckpt"
    raw = torch.load(path, weights_only=True)
    raw["OfflineDataModule"] |= {"action_low": [-2.0], "action_high": [2.0]}
    torch.save(raw, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def onnx_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("onnx") / "policy").folder


@pytest.fixture(scope="module")
def torch_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("torch") / "policy", "torch").folder


@pytest.fixture(params=["onnx", "torch"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"{request.param}_folder")
    return found


def test_actions_are_the_checkpoints_in_the_environments_units(folder: Path, checkpoint: Path) -> None:
    model, _ = load_checkpoint(checkpoint)
    policy = Policy.load(folder)
    noise = np.random.default_rng(1).normal(size=(5, 1)).astype(np.float32)
    with torch.inference_mode():
        expected = 2.0 * model.actor().act(torch.from_numpy(OBSERVATIONS), torch.from_numpy(noise)).numpy()
        still = 2.0 * model.actor().act(torch.from_numpy(OBSERVATIONS), torch.zeros(5, 1)).numpy()
    np.testing.assert_allclose(policy.act(OBSERVATIONS, noise=noise), expected, atol=2e-5)
    np.testing.assert_allclose(policy.act(OBSERVATIONS, deterministic=True), still, atol=2e-5)
    np.testing.assert_allclose(policy.act(OBSERVATIONS[2], noise=noise[2]), expected[2], atol=2e-5)


def test_the_noise_is_the_seeds(folder: Path) -> None:
    first, second, other = Policy.load(folder, 3), Policy.load(folder, 3), Policy.load(folder, 4)
    actions = first.act(OBSERVATIONS)
    np.testing.assert_array_equal(actions, second.act(OBSERVATIONS))
    assert not np.array_equal(actions, other.act(OBSERVATIONS))
    assert not np.array_equal(actions, first.act(OBSERVATIONS))


def test_metadata_say_what_a_user_needs(folder: Path) -> None:
    metadata = json.loads((folder / "metadata.json").read_text())
    assert list(metadata) == list(METADATA_KEYS)
    assert (metadata["observation_dim"], metadata["action_dim"], metadata["noise_shape"]) == (3, 1, [1])
    assert (metadata["action_low"], metadata["action_high"], metadata["env_id"]) == ([-2.0], [2.0], "Pendulum-v1")
    assert metadata["updates"] == 5
    assert metadata["verification"]["rows"] == 1_000
    assert metadata["verification"]["batch_sizes"] == [1, 256]
    assert metadata["verification"]["largest_difference"] <= 1e-5
    assert metadata["verification"]["observations"] == "random actions in Pendulum-v1"
    assert {"torch", "tql-lightning"} <= set(metadata["versions"])
    assert set(metadata["files"]) == set(FILES[metadata["format"]])


@pytest.mark.parametrize(("name", "absent"), [("onnx", {"lightning", "torch"}), ("torch", {"lightning"})])
def test_the_readmes_three_lines_act_without_lightning(
    name: str, absent: set[str], request: pytest.FixtureRequest
) -> None:
    exported: Path = request.getfixturevalue(f"{name}_folder")
    (example,) = [text for text in PYTHON if "Policy.load" in text]
    code = f"import sys\nobservation = [1.0, 0.0, 0.0]\n{example}\nprint(action.shape, *sys.modules)"
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=exported.parent, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("(1,)")
    assert not absent & set(finished.stdout.split())


@pytest.mark.parametrize("export_format", get_args(ExportFormat))
def test_chunks_of_actions_leave_as_steps_to_take_one_after_the_other(
    export_format: ExportFormat, tmp_path: Path
) -> None:
    checkpoint = trained(tmp_path / "run", data={"action_chunk": 3}, action_chunk=3)
    exported = export_checkpoint(checkpoint, tmp_path / "policy", export_format)
    metadata = exported.metadata
    assert (metadata["action_dim"], metadata["action_chunk"], metadata["noise_shape"]) == (1, 3, [3])
    assert (metadata["action_low"], metadata["action_high"]) == ([-2.0], [2.0])
    policy, (model, _) = Policy.load(exported.folder), load_checkpoint(checkpoint)
    noise = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = 2.0 * model.actor().act(torch.from_numpy(OBSERVATIONS), torch.from_numpy(noise)).numpy()
    np.testing.assert_allclose(policy.act(OBSERVATIONS, noise=noise), expected[..., None], atol=2e-5)
    assert policy.act(OBSERVATIONS[0]).shape == (3, 1)
    assert policy.act(OBSERVATIONS, deterministic=True).shape == (5, 3, 1)


@pytest.mark.parametrize("extraction", ["implicit", "behaviour_flow"])
def test_every_extraction_leaves(extraction: Extraction, checkpoint: Path, tmp_path: Path) -> None:
    exported = export_checkpoint(checkpoint, tmp_path / "policy", "torch", extraction)
    assert exported.largest_difference <= 1e-5
    policy = Policy.load(exported.folder)
    assert policy.noise_shape == ((4, 1) if extraction == "implicit" else (1,))
    assert policy.act(OBSERVATIONS).shape == (5, 1)


def test_implicit_leaves_as_onnx_with_any_parts_of_the_critic(tmp_path: Path) -> None:
    critic = partial(TransformerCritic, hidden_dim=16, head_dim=8, num_layers=1, norm=torch.nn.RMSNorm)
    settings = {"critic": critic, "extraction": "implicit", "num_samples": 3}
    settings |= {"value_loss": partial(HLGauss, num_bins=11), "reward_range": (-1.0, 1.0)}
    path = trained(tmp_path / "run", **settings)
    exported = export_checkpoint(path, tmp_path / "policy")
    assert exported.largest_difference <= 1e-5
    assert Policy.load(exported.folder).noise_shape == (3, 1)
    with pytest.raises(ExportError, match=r"model\.critic has parts of its own \(norm\); use --format onnx"):
        export_checkpoint(path, tmp_path / "as_torch", "torch")
    assert not (tmp_path / "as_torch").exists()


class OwnPolicy(FlowPolicy):
    """A policy of a user's class."""


def test_a_policy_of_ones_own_is_refused_as_torch(tmp_path: Path) -> None:
    path = trained(tmp_path / "run", policy=partial(OwnPolicy, hidden_dims=(8,), flow_steps=1))
    with pytest.raises(ExportError, match="found OwnPolicy; use --format onnx"):
        export_checkpoint(path, tmp_path / "policy", "torch")


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


@pytest.mark.parametrize(
    ("observations", "options", "message"),
    [
        (np.zeros(4), {}, r"expected shape \(3,\) or \(B, 3\), found \(4,\)"),
        (np.zeros((2, 4)), {}, r"found \(2, 4\)"),
        (np.zeros((0, 3)), {}, r"found \(0, 3\)"),
        (np.zeros((1, 1, 3)), {}, r"found \(1, 1, 3\)"),
        ([np.nan, 0, 0], {}, "found NaN"),
        (np.zeros(3), {"noise": np.zeros((2, 1))}, "noise: expected"),
        (np.zeros((2, 3)), {"noise": np.zeros(1)}, r"noise: expected finite numbers of shape \(2, 1\)"),
        (np.zeros(3), {"noise": np.zeros(1), "deterministic": True}, "deterministic"),
    ],
)
def test_what_is_no_observation_is_refused(
    observations: Any, options: dict[str, Any], message: str, torch_folder: Path
) -> None:
    with pytest.raises(PolicyError, match=message):
        Policy.load(torch_folder).act(observations, **options)


def _metadata(folder: Path, **changes: Any) -> None:
    path = folder / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _without(folder: Path, key: str) -> None:
    path = folder / "metadata.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))


class _Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("a stranger's code ran",)


def _with_weights(folder: Path, weights: object) -> None:
    """Weights of a stranger's, under their own checksum."""
    from hashlib import sha256

    torch.save(weights, folder / "policy.pt")
    _metadata(folder, files={"policy.pt": sha256((folder / "policy.pt").read_bytes()).hexdigest()})


DAMAGES = {
    "no metadata": (lambda folder: (folder / "metadata.json").unlink(), "found no metadata.json"),
    "no JSON": (lambda folder: (folder / "metadata.json").write_text("{"), "metadata.json is damaged"),
    "a list": (lambda folder: (folder / "metadata.json").write_text("[]"), "lacks format_version"),
    "a key missing": (lambda folder: _without(folder, "noise_shape"), "lacks noise_shape"),
    "another version": (lambda folder: _metadata(folder, format_version=2), r"expected format version 1 .* found 2"),
    "another format": (lambda folder: _metadata(folder, format="pickle"), "found 1 .pickle"),
    "bounds missing": (lambda folder: _metadata(folder, action_low=[]), "action bounds"),
    "size of no kind": (lambda folder: _metadata(folder, observation_dim="3"), "sizes"),
    "weights missing": (lambda folder: (folder / "policy.pt").unlink(), "policy.pt is missing"),
    "a byte changed": (lambda folder: (folder / "policy.pt").write_bytes(b"x"), "not the file that was exported"),
    "another architecture": (
        lambda folder: _metadata(folder, architecture={"policy": {"hidden_dims": [5]}, "critic": None}),
        "weights and architecture do not fit",
    ),
    "an unknown argument": (
        lambda folder: _metadata(folder, architecture={"policy": {"evil": 1}, "critic": None}),
        "weights and architecture do not fit",
    ),
    "a critic of one's own": (
        lambda folder: _metadata(folder, architecture={"policy": {}, "critic": {"class": "os.system"}}),
        "weights and architecture do not fit",
    ),
    "code instead of weights": (
        lambda folder: _with_weights(folder, _Exploit()),
        "weights and architecture do not fit",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_an_export_that_is_damaged_or_foreign_is_refused_with_the_reason(
    damage: Any, message: str, torch_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in torch_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    damage(copy)
    with pytest.raises(PolicyError, match=message):
        Policy.load(copy)
    assert "code ran" not in capsys.readouterr().out


def test_a_checkpoint_is_no_export(checkpoint: Path) -> None:
    with pytest.raises(PolicyError, match=r"expected a folder .* found a file; tql export it first"):
        Policy.load(checkpoint)


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
    "a list": (lambda _: [1, 2], "expected one that tql fit wrote"),
    "of another model": (
        lambda raw: raw | {"state_dict": {"layer.weight": torch.zeros(2)}},
        "does not fit a TQL model",
    ),
    "without sizes": (lambda raw: raw | {"hyper_parameters": {}}, "does not fit a TQL model"),
    "hyperparameters of no kind": (lambda raw: raw | {"hyper_parameters": 3}, "does not fit a TQL model"),
    "an unknown setting": (lambda raw: _hyperparameters(raw, taau=1.0), "does not fit a TQL model"),
    "another size": (lambda raw: _hyperparameters(raw, observation_dim=4), "does not fit a TQL model"),
    "a class that is not there": (
        lambda raw: _hyperparameters(raw, critic={"class_path": "nowhere.Critic"}),
        "does not fit a TQL model",
    ),
    "a class that is no critic": (
        lambda raw: _hyperparameters(raw, critic={"class_path": "os.system", "init_args": {"command": "true"}}),
        "does not fit a TQL model",
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
