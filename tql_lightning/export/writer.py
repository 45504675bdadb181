"""Exports a checkpoint's policy: checkpoint -> one network -> files, compared with the checkpoint.

`tql_lightning.export.policy_folder` describes the files, `tql_lightning.export.policy` acts with them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.algorithms.tql import TQL
from tql_lightning.export.comparison import ExportError, compare
from tql_lightning.export.policy import Policy
from tql_lightning.export.policy_folder import FILES, FORMAT_VERSION, METADATA_FILE, ExportFormat
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.extraction import Extraction
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.policy_extraction import EXTRACTIONS
from tql_lightning.nn.scaled_policy import ScaledPolicy
from tql_lightning.run.provenance import package_versions

PACKAGES = ("tql-lightning", "torch", "numpy", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """Exported folder and its metadata."""

    folder: Path
    metadata: Mapping[str, Any]

    @property
    def largest_difference(self) -> float:
        """Largest difference from the checkpoint's actions, in the units of `TOLERANCE`."""
        return float(self.metadata["verification"]["largest_difference"])


class _Deterministic(nn.Module):
    """A policy with zero noise."""

    def __init__(self, policy: ScaledPolicy) -> None:
        super().__init__()
        self.scaled = policy.with_zero_noise()

    def forward(self, observations: Tensor) -> Tensor:
        """(B, n_s) -> (B, n_a)."""
        noise = torch.zeros(observations.shape[0], self.scaled.policy.action_dim)
        actions: Tensor = self.scaled(observations, noise)
        return actions


def export_checkpoint(
    checkpoint: Path, output: Path, export_format: ExportFormat = "onnx", extraction: Extraction | None = None
) -> Exported:
    """Writes a folder that `Policy.load` reads, after comparing its actions with the checkpoint's.

    The comparison takes 1,000 observations, with and without noise, in batches of 1 and of 256. Actions must agree
    within 1e-5 times the larger of 1 and the largest bound. Observations come from the dataset if the run's
    configuration names it, else from random actions in the environment, else from a normal distribution.

    Args:
        checkpoint: Path of a checkpoint that `tql fit` wrote.
        output: Folder to create; it may exist if it is empty.
        export_format: "onnx" or "torch".
        extraction: Name of the extraction; None for the model's setting.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ExportError: the folder is in use, a package is missing, the format cannot hold the network, or actions differ.
            Nothing is left behind.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"output: {output} exists and is not an empty folder; choose another --output, or remove it")
    model, raw = load_checkpoint(checkpoint, plays=False)
    chosen = extraction or model.extraction
    data = raw.get("OfflineDataModule", {})
    low = data.get("action_low", [-1.0] * model.env_action_dim)
    high = data.get("action_high", [1.0] * model.env_action_dim)
    critic = model.critic if EXTRACTIONS[chosen].uses_critic else None
    bounds = low * model.action_chunk, high * model.action_chunk
    network = ScaledPolicy(model.policy, critic, chosen, *bounds).eval()
    metadata = {
        "format_version": FORMAT_VERSION,
        "format": export_format,
        "files": {},
        "extraction": chosen,
        "observation_dim": model.observation_dim,
        "action_dim": model.env_action_dim,
        "action_chunk": model.action_chunk,
        "noise_shape": list(model.actor(chosen).noise_shape),
        "action_low": low,
        "action_high": high,
        "env_id": data.get("env_id"),
        "dataset": data.get("name"),
        "updates": int(raw["global_step"]),
        "architecture": _architecture(model, chosen, raw["hyper_parameters"]) if export_format == "torch" else None,
        "verification": {},
        "versions": {name: version for name, version in package_versions().items() if name in PACKAGES},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        if export_format == "onnx":
            _write_onnx(network, metadata, made)
        else:
            save_file(network.state_dict(), made / FILES["torch"][0])
        files = {name: hashlib.sha256((made / name).read_bytes()).hexdigest() for name in FILES[export_format]}
        metadata["files"] = files
        _write_metadata(made, metadata)  # `Policy.load` needs it for the comparison
        metadata["verification"] = compare(model, network, Policy.load(made), checkpoint, raw)
        _write_metadata(made, metadata)
        made.chmod(0o755)
        made.replace(output)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return Exported(output, metadata)


def _write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n")


def _write_onnx(network: ScaledPolicy, metadata: Mapping[str, Any], folder: Path) -> None:
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ModuleNotFoundError as error:
        raise ExportError(
            f'format onnx: {error}; pip install "tql-lightning[export]", or use --format torch'
        ) from error
    # The exporter warns about operators of packages that are neither installed nor used.
    logging.getLogger("torch.onnx._internal.exporter").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch")
    observations = torch.zeros(2, metadata["observation_dim"])
    inputs = {"observations": observations, "noise": torch.zeros(2, *metadata["noise_shape"])}
    for name, module, names in zip(
        FILES["onnx"],
        (network, _Deterministic(network).eval()),
        (("observations", "noise"), ("observations",)),
        strict=True,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its own internals
            program = torch.onnx.export(
                module,
                tuple(inputs[each] for each in names),
                input_names=names,
                output_names=["actions"],
                dynamic_shapes={each: {0: batch} for each in names},
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        program.save(folder / name)


def _architecture(model: TQL, extraction: Extraction, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Plain numbers from which `policy.build` makes the networks.

    Raises:
        ExportError: the networks are of other classes, or have parts that plain numbers cannot describe.
    """
    policy = _plain_arguments("policy", model.policy, (FlowPolicy,), hyperparameters["policy"])
    if not EXTRACTIONS[extraction].uses_critic:
        return {"policy": policy, "critic": None}
    critic = _plain_arguments("critic", model.critic, (TransformerCritic, MLPCritic), hyperparameters["critic"])
    critic["support"] = model.value_loss.support
    return {"policy": policy, "critic": {"class": type(model.critic).__name__, "arguments": critic}}


def _plain_arguments(
    name: str, module: nn.Module, known: tuple[type[nn.Module], ...], described: Mapping[str, Any]
) -> dict[str, Any]:
    kind = type(module)
    if kind not in known or not isinstance(described, Mapping):
        raise ExportError(f"format torch: expected a {known[0].__name__}, found {kind.__name__}; use --format onnx")
    arguments, parts = {}, []
    for argument, value in described.get("init_args", {}).items():
        if isinstance(value, Mapping):
            default = inspect.signature(kind).parameters[argument].default
            parts += [] if _is_default(value, default) else [argument]
        elif argument not in ("observation_dim", "action_dim"):
            arguments[argument] = value
    if parts or not _is_json(arguments):
        raise ExportError(
            f"format torch: expected a {kind.__name__} with default parts, found other parts in model.{name} "
            f"({', '.join(parts) or 'arguments'}); use --format onnx"
        )
    return arguments


def _is_default(value: Any, default: Any) -> bool:
    """Whether a part's class path and arguments equal the default's."""
    if not isinstance(value, Mapping) or not isinstance(default, type):
        return bool(value == default)
    parameters = inspect.signature(default).parameters
    return str(value.get("class_path", "")).rpartition(".")[2] == default.__name__ and all(
        name in parameters and _is_default(argument, parameters[name].default)
        for name, argument in value.get("init_args", {}).items()
    )


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
