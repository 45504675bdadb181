"""Writes a checkpoint's policy for use elsewhere: checkpoint -> one network -> files, compared with the checkpoint.

`tql_lightning.export.policy_folder` says what the files are, `tql_lightning.export.policy` acts with them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.export.comparison import ExportError, compare
from tql_lightning.export.onnx_files import ActingNetwork, write_onnx
from tql_lightning.export.plain_policy import plain_policy
from tql_lightning.export.policy import Policy
from tql_lightning.export.policy_folder import FILES, FORMAT_VERSION, METADATA_FILE, ExportFormat
from tql_lightning.nn.structured import merge_structured
from tql_lightning.run.provenance import package_versions

PACKAGES = ("tql-lightning", "torch", "numpy", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its actions are from the checkpoint's at most."""

    folder: Path
    metadata: Mapping[str, Any]

    @property
    def largest_difference(self) -> float:
        """In the unit of `TOLERANCE`."""
        return float(self.metadata["verification"]["largest_difference"])


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    export_format: ExportFormat = "onnx",
    extraction: str | None = None,
    dataset: str | None = None,
) -> Exported:
    """Writes a folder that `Policy.load` reads, after comparing its actions with the checkpoint's.

    1,000 observations, with noise and without, in batches of 1 and of 256; every action must be within 1e-5 (of the
    larger of 1 and the largest bound of the actions). The observations are those of random actions in the checkpoint's
    environment, or else normal numbers, unless a dataset is named.

    Args:
        checkpoint: that `tql fit` wrote.
        output: folder to make; it may not exist, or must be empty.
        export_format: "onnx" or "torch".
        extraction: how actions are chosen; None for the model's own setting.
        dataset: Name or path of a dataset whose observations to compare at, see `load_dataset`.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: the model knows no such extraction.
        DatasetError: the dataset cannot be loaded, or holds other observations.
        ExportError: the folder is in use, a package is missing, the format cannot hold the network, or the actions
            are not the checkpoint's. Nothing is left behind.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"output: {output} exists and is not an empty folder; choose another --output, or remove it")
    model, raw = load_checkpoint(checkpoint, plays=False)
    model = merge_structured(model)
    actor = model.actor(extraction)
    data = raw.get("OfflineDataModule", {})
    low = data.get("action_low", [-1.0] * model.env_action_dim)
    high = data.get("action_high", [1.0] * model.env_action_dim)
    bounds = low * model.action_chunk, high * model.action_chunk
    network, architecture = None, None
    if export_format == "torch":
        network, architecture = plain_policy(model, actor, raw["hyper_parameters"], *bounds)
    metadata = {
        "format_version": FORMAT_VERSION,
        "format": export_format,
        "files": {},
        "extraction": extraction or model.extraction,
        "observation_dim": model.observation_dim,
        "action_dim": model.env_action_dim,
        "action_chunk": model.action_chunk,
        "noise_shape": list(actor.noise_shape),
        "action_low": low,
        "action_high": high,
        "env_id": data.get("env_id"),
        "dataset": data.get("name"),
        "updates": int(raw["global_step"]),
        "architecture": architecture,
        "verification": {},
        "versions": {name: version for name, version in package_versions().items() if name in PACKAGES},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        if network is None:
            write_onnx(ActingNetwork(model, actor, *bounds).eval(), metadata, made)
        else:
            save_file(network.state_dict(), made / FILES["torch"][0])
        files = {name: hashlib.sha256((made / name).read_bytes()).hexdigest() for name in FILES[export_format]}
        metadata["files"] = files
        _write_metadata(made, metadata)  # without it the folder cannot be loaded and compared
        metadata["verification"] = compare(actor, bounds, Policy.load(made), raw, dataset)
        _write_metadata(made, metadata)
        made.chmod(0o755)
        made.replace(output)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return Exported(output, metadata)


def _write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n")
