"""An exported policy acts like its checkpoint, without Lightning."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.test_docs import python_of
from tests.toy import fit, toy_model
from tql_lightning import Policy
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.export.policy_folder import FILES, METADATA_KEYS, ExportFormat, PolicyError
from tql_lightning.export.writer import export_checkpoint
from tql_lightning.nn.policy import FlowPolicy

OBSERVATIONS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def trained(folder: Path, data: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A checkpoint after five updates, for Pendulum with bounds -2 and 2."""
    policy = partial(FlowPolicy, hidden_dims=(16,), flow_steps=2, num_samples=4)
    model = toy_model(**({"policy": policy} | settings))
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
    example = python_of("export")[0]
    code = f"import sys\nobservation = [1.0, 0.0, 0.0]\n{example}\nprint(action.shape, *sys.modules)"
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=exported.parent, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("(1,)")
    assert not absent & set(finished.stdout.split())


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("observations", "options", "message"),
    [
        (np.zeros(4), {}, r"expected shape \(3,\) or \(B, 3\), found \(4,\)"),
        (np.zeros((2, 4)), {}, r"found \(2, 4\)"),
        (np.zeros((0, 3)), {}, r"found \(0, 3\)"),
        (np.zeros((1, 1, 3)), {}, r"found \(1, 1, 3\)"),
        ({"b": [0.0], "a": [0.0, 1.0]}, {}, "found dict; make its columns as in training with .*flatten"),
        ([np.nan, 0, 0], {}, "found NaN"),
        (np.zeros(3), {"noise": np.zeros((2, 1))}, "noise: expected"),
        (np.zeros((2, 3)), {"noise": np.zeros(1)}, r"noise: expected finite numbers of shape \(2, 1\)"),
        ([1e300, 0.0, 0.0], {}, "expected finite numbers"),
        ([1e30, 0.0, 0.0], {}, r"expected some like those in training, found numbers up to 1e\+30"),
        (["1", "0", "0"], {}, "observations: expected real numbers, found dtype <U1"),
        ([1j, 0, 0], {}, "found dtype complex128"),
        ([None, 0, 0], {}, "found dtype object"),
        (np.zeros(3, "datetime64[D]"), {}, "found dtype datetime64"),
        ([[1, 2, 3], [1, 2]], {}, "expected real numbers, found list"),
        (np.zeros(3), {"noise": ["1"]}, "noise: expected real numbers"),
        (np.zeros(3), {"noise": np.zeros(1), "deterministic": True}, "deterministic"),
    ],
)
def test_what_is_no_observation_is_refused(
    observations: Any, options: dict[str, Any], message: str, torch_folder: Path
) -> None:
    with pytest.raises(PolicyError, match=message):
        Policy.load(torch_folder).act(observations, **options)
