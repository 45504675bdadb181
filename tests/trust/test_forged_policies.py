"""Exported folders made to harm whoever loads them: refused with our own error, in little memory, nothing executed."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load, save

from tests.export.test_policy import trained
from tests.forging import NESTED, Exploit, watched
from tests.trust.test_forged_checkpoints import saved
from tql_lightning import Policy
from tql_lightning.export.policy_folder import FILES, ExportFormat, PolicyError
from tql_lightning.export.writer import export_checkpoint

Forge = Callable[[Path, dict[str, Any]], None]  # changes a folder's files and its metadata


def told(**changes: Any) -> Forge:
    return lambda _, metadata: metadata.update(changes)


def built(**arguments: Any) -> Forge:
    """Other arguments of the policy's network."""
    return lambda _, metadata: metadata["architecture"]["policy"].update(arguments)


def weights(content: Callable[[dict[str, Any]], bytes]) -> Forge:
    def forge(folder: Path, _: dict[str, Any]) -> None:
        path = folder / "policy.safetensors"
        path.write_bytes(content(load(path.read_bytes())))

    return forge


def claiming(shape: list[int], offsets: list[int]) -> bytes:
    """A safetensors file of four bytes whose header says something else."""
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def padded(**arguments: Any) -> Forge:
    """Other arguments of the network, and a million numbers besides its weights."""

    def forge(folder: Path, metadata: dict[str, Any]) -> None:
        weights(lambda given: save(given | {"x": torch.ones(10**6)}))(folder, metadata)
        built(**arguments)(folder, metadata)

    return forge


def external(location: str) -> Forge:
    """A model whose first weights lie in another file."""

    def forge(folder: Path, _: dict[str, Any]) -> None:
        (folder.parent / "secret.bin").write_bytes(bytes(1 << 16))
        model = onnx.load(folder / "policy.onnx")
        tensor = next(each for each in model.graph.initializer if each.data_type == 1 and each.raw_data)
        length = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": str(length)}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        (folder / "policy.onnx").write_bytes(model.SerializeToString())

    return forge


def written(name: str, content: bytes) -> Forge:
    return lambda folder, _: (folder / name).write_bytes(content) and None


def cut(name: str) -> Forge:
    return lambda folder, _: (folder / name).write_bytes((folder / name).read_bytes()[:-200]) and None


TORCH: dict[str, tuple[Forge, str]] = {
    "huge chunks": (told(action_chunk=10**12), "sizes, noise_shape"),
    "huge chunks of many actions": (told(action_chunk=1 << 23, action_dim=9, action_low=[0] * 9), "sizes, noise_shape"),
    "a huge noise": (told(noise_shape=[10**6, 10**6]), "sizes, noise_shape"),
    "a huge layer": (built(hidden_dims=[10**9]), "1000000000 in a network"),
    "two huge layers": (built(hidden_dims=[10**9, 10**9]), "2000000000 in a network"),
    "a number of 400 digits": (built(flow_steps=10**400), "a number of 1329 bits in a network"),
    "60,000 layers": (built(hidden_dims=[1] * 60_000), "60000 in a network"),
    "hundreds of layers": (padded(hidden_dims=[4] * 900), "of more tensors than its weights have"),
    "layers of layers": (built(hidden_dims=[[[8] * 60] * 60] * 60), "more than 1,000 numbers of a network"),
    "wide layers": (padded(hidden_dims=[4000, 4000, 4000]), "of more numbers than its weights have"),
    "noise of many dimensions": (told(noise_shape=[1] * 100_000), "sizes, noise_shape"),
    "noise of no dimensions": (told(noise_shape=[]), "another noise_shape"),
    "noise of other dimensions": (told(noise_shape=[4, 2]), "another noise_shape"),
    "noise of 400 digits": (told(noise_shape=[10**400]), "sizes, noise_shape"),
    "chunks of 400 digits": (told(action_chunk=10**400), "found sizes 3, 1, a number of 1329 bits"),
    "a dataset of megabytes": (told(env_id="x" * (5 << 20)), "expected at most 4,194,304 bytes"),
    "other layers": (built(hidden_dims=[64, 64]), "other names or shapes"),
    "endless steps": (built(flow_steps=10**12), "1000000000000 in a network"),
    "infinite bounds": (told(action_low=[-1e400]), "sizes, noise_shape"),
    "another class": (
        told(architecture={"policy": {}, "critic": {"class": "os.system", "arguments": {"command": "touch executed"}}}),
        "weights and architecture do not fit",
    ),
    "no architecture": (told(architecture=None), "weights and architecture do not fit"),
    "an unknown argument": (built(command="touch executed"), "weights and architecture do not fit"),
    "a list for the format": (told(format=["torch"]), "expected format version 1"),
    "a pickle": (written("policy.safetensors", pickle.dumps(Exploit())), "weights and architecture do not fit"),
    "a pickle as torch.save writes it": (weights(lambda _: saved(Exploit())), "weights and architecture do not fit"),
    "a huge header": (written("policy.safetensors", (1 << 60).to_bytes(8, "little") + b"{}"), "do not fit"),
    "more elements than bytes": (weights(lambda _: claiming([1 << 30], [0, 1 << 32])), "do not fit"),
    "more elements than its bytes": (weights(lambda _: claiming([1 << 30], [0, 4])), "do not fit"),
    "more weights": (weights(lambda given: save(given | {"x": torch.ones(1)})), "other names or shapes"),
    "other names": (weights(lambda given: save({f"x{name}": each for name, each in given.items()})), "other names or"),
    "cut short": (cut("policy.safetensors"), "weights and architecture do not fit"),
}
ONNX: dict[str, tuple[Forge, str]] = {
    "weights above the folder": (external("../secret.bin"), "onnxruntime cannot read policy.onnx"),
    "weights anywhere": (external("/etc/passwd"), "onnxruntime cannot read policy.onnx"),
    "weights of a device": (external("/dev/zero"), "onnxruntime cannot read policy.onnx"),
    "cut short": (cut("policy.onnx"), "onnxruntime cannot read policy.onnx"),
    "a pickle": (written("policy.onnx", pickle.dumps(Exploit())), "onnxruntime cannot read policy.onnx"),
    "no bytes": (written("policy_deterministic.onnx", b""), "cannot read policy_deterministic.onnx"),
    "deep metadata": (lambda folder, _: (folder / "metadata.json").write_text(NESTED) and None, "is damaged"),
    "a list for metadata": (lambda folder, _: (folder / "metadata.json").write_text("[]") and None, "lacks"),
    "files by another name": (
        lambda _, metadata: metadata.update(files={"../secret.bin": "0"}),
        "does not match its checksum",
    ),
    "huge observations": (told(observation_dim=10**12), "sizes, noise_shape"),
    "sizes as text": (told(observation_dim="3"), "sizes, noise_shape"),
    "bounds of other sizes": (told(action_low=[-1.0, -1.0]), "sizes, noise_shape"),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[ExportFormat, Path]:
    checkpoint = trained(tmp_path_factory.mktemp("run"))
    whole = export_checkpoint(checkpoint, tmp_path_factory.mktemp("torch") / "policy", "torch").folder
    return {"torch": whole, "onnx": linear(tmp_path_factory.mktemp("onnx") / "policy", whole)}


def linear(folder: Path, other: Path) -> Path:
    """A policy in ONNX that is linear in its observation, with another's sizes."""
    folder.mkdir()
    value, tensor = onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array(np.ones((3, 1), np.float32), "w")
    for name, inputs in zip(FILES["onnx"], ({"observations": 3, "noise": 1}, {"observations": 3}), strict=True):
        product = onnx.helper.make_node("MatMul", ["observations", "w"], ["actions"])
        given = [value(each, onnx.TensorProto.FLOAT, ["batch", size]) for each, size in inputs.items()]
        graph = onnx.helper.make_graph(
            [product], "linear", given, [value("actions", onnx.TensorProto.FLOAT, ["batch", 1])], [tensor]
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        (folder / name).write_bytes(model.SerializeToString())
    metadata = json.loads((other / "metadata.json").read_text())
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES["onnx"]}
    (folder / "metadata.json").write_text(json.dumps(metadata | {"format": "onnx", "files": files}))
    return folder


CASES = [("torch", name) for name in TORCH] + [("onnx", name) for name in ONNX]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_forged_policy_is_refused_and_runs_nothing(
    kind: ExportFormat, name: str, exported: dict[ExportFormat, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "policy"
    shutil.copytree(exported[kind], folder)
    assert Policy.load(folder).act(np.zeros(3)).shape == (1,)
    forge, message = (TORCH if kind == "torch" else ONNX)[name]
    metadata = json.loads((folder / "metadata.json").read_text())
    for file in FILES[kind]:  # forgers know how to take a checksum
        metadata["files"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    forge(folder, metadata)
    if "files by" not in name:
        metadata["files"] = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in FILES[kind]}
    if "metadata" not in name:
        (folder / "metadata.json").write_text(json.dumps(metadata))
    with watched(tmp_path), pytest.raises(PolicyError) as caught:
        Policy.load(folder)
    assert message in str(caught.value), caught.value
