"""Files of an exported policy, and the check that they are complete.

The folder holds metadata.json, whose keys are `METADATA_KEYS`, and

- format "onnx": policy.onnx (observations, noise -> actions) and policy_deterministic.onnx (observations -> actions,
  with zero noise). Any ONNX runtime can run them. This package uses onnxruntime and does not import torch;
- format "torch": policy.safetensors, the weights alone. This package builds the network from the plain numbers under
  ``architecture``. No file is read with pickle. torch.export's own files are not used: reading them can fall back to
  pickle, and evaluates expressions, so that a stranger's file could run code.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tql_lightning.trust.bounded import read_json, require_regular
from tql_lightning.trust.text import FileError, shown

ExportFormat = Literal["onnx", "torch"]

METADATA_FILE = "metadata.json"
FORMAT_VERSION = 1
MAX_METADATA_BYTES = 4 << 20
MAX_DIMENSIONS = 8  # of the noise of one observation
MAX_SIZE = 1 << 24  # of dimensions, of the noise of one observation, and of bounds
FILES = {"onnx": ("policy.onnx", "policy_deterministic.onnx"), "torch": ("policy.safetensors",)}
METADATA_KEYS = {
    "format_version": "version of this layout",
    "format": "onnx or torch",
    "files": "SHA-256 of every other file, by name",
    "extraction": "name of the policy extraction, or null if the algorithm has only one",
    "observation_dim": "n_s; observations are flat float32 vectors, as in the dataset",
    "action_dim": "n_a of one step of the environment",
    "action_chunk": "h, number of steps per decision; the files return h * n_a numbers, step by step",
    "noise_shape": "shape of the standard normal noise of one observation",
    "action_low": "lower bounds of actions, in the environment's units",
    "action_high": "upper bounds of actions, in the environment's units",
    "env_id": "Gymnasium id of the environment, or null",
    "dataset": "name of the training dataset",
    "updates": "number of updates in training",
    "architecture": "arguments of the networks (torch), or null (onnx)",
    "verification": "result of the comparison with the checkpoint",
    "versions": "versions of the packages that wrote the files",
}


class PolicyError(FileError):
    """An exported policy cannot be loaded, or is called with wrong arguments; the message says why."""


def read_metadata(folder: Path) -> dict[str, Any]:
    """Reads metadata.json after checking it, and the checksums of the files it names.

    Raises:
        PolicyError: a file is missing, damaged or changed.
    """
    if folder.is_file():
        raise PolicyError(
            f"policy {folder}: expected a folder that tql export wrote, found a file; tql export it first"
        )
    path = folder / METADATA_FILE
    if not path.is_file():
        raise PolicyError(f"policy {folder}: expected a folder that tql export wrote, found no {METADATA_FILE} in it")
    try:
        metadata: dict[str, Any] = read_json(path, MAX_METADATA_BYTES)
    except (ValueError, OSError) as error:
        raise PolicyError(f"policy {folder}: {METADATA_FILE} is damaged ({error}); export again") from error
    missing = [key for key in METADATA_KEYS if not isinstance(metadata, dict) or key not in metadata]
    if missing:
        raise PolicyError(f"policy {folder}: {METADATA_FILE} lacks {', '.join(missing)}; tql export did not write it")
    if metadata["format_version"] != FORMAT_VERSION or metadata["format"] not in list(FILES):
        found = f"{shown(metadata['format_version'])} ({shown(metadata['format'])})"
        raise PolicyError(f"policy {folder}: expected format version {FORMAT_VERSION} (onnx or torch), found {found}")
    _check_numbers(folder, metadata)
    for name in FILES[metadata["format"]]:
        file = folder / name
        if not file.is_file():
            raise PolicyError(f"policy {folder}: {name} is missing; copy the whole folder, or export again")
        try:
            require_regular(file)
        except FileError as error:
            raise PolicyError(f"policy {folder}: {error}") from error
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != metadata["files"].get(name):
            raise PolicyError(f"policy {folder}: {name} does not match its checksum; copy or export it again")
    return metadata


def _check_numbers(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Refuses invalid sizes and bounds."""
    sizes = [metadata["observation_dim"], metadata["action_dim"], metadata["action_chunk"]]
    shape, bounds = metadata["noise_shape"], [metadata["action_low"], metadata["action_high"]]
    sane = (
        all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes)
        and isinstance(shape, list)
        and len(shape) <= MAX_DIMENSIONS
        and all(type(size) is int and 1 <= size <= MAX_SIZE for size in shape)
        and math.prod(shape) <= MAX_SIZE
        and sizes[1] * sizes[2] <= MAX_SIZE
        and isinstance(metadata["files"], dict)
        and all(isinstance(bound, list) and len(bound) == sizes[1] for bound in bounds)
        and all(isinstance(value, int | float) and abs(value) <= MAX_SIZE for bound in bounds for value in bound)
    )
    if not sane:
        raise PolicyError(
            f"policy {folder}: {METADATA_FILE}: sizes, noise_shape, files or action bounds are not what tql export "
            f"writes: found sizes {', '.join(map(shown, sizes))}, noise_shape {shown(shape)}"
        )
