"""What the folder of an exported policy holds, and whether it is whole.

There is metadata.json, whose keys are `METADATA_KEYS`, and

- format "onnx": policy.onnx (observations, noise -> actions) and policy_deterministic.onnx (observations -> actions,
  with zero noise inside), which any ONNX runtime can run; here onnxruntime does, and torch is not imported;
- format "torch": policy.safetensors, the weights alone. This package builds the network from the plain numbers under
  ``architecture``. No file is read with pickle. torch.export's own files are not used: reading them can fall back to
  pickle, and evaluates expressions, so that a stranger's file could run code.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tql_lightning.trust.text import shown

ExportFormat = Literal["onnx", "torch"]

METADATA_FILE = "metadata.json"
FORMAT_VERSION = 1
MOST_METADATA_BYTES = 4 << 20
MOST_DIMENSIONS = 8  # of the noise of one observation
LARGEST = 1 << 24  # of sizes, of the numbers of one noise, and of bounds
FILES = {"onnx": ("policy.onnx", "policy_deterministic.onnx"), "torch": ("policy.safetensors",)}
METADATA_KEYS = {
    "format_version": "of this layout",
    "format": "onnx or torch",
    "files": "SHA-256 of every other file, by name",
    "extraction": "how actions are chosen, or null where the algorithm has one way",
    "observation_dim": "n_s; observations are float32, flat, as the dataset has them",
    "action_dim": "n_a, of one step of the environment",
    "action_chunk": "h, steps that one decision is made of; the files give its h * n_a numbers step after step",
    "noise_shape": "of the standard normal noise of one observation",
    "action_low": "lower bounds of the actions, in the environment's units",
    "action_high": "upper bounds of the actions",
    "env_id": "Gymnasium id of the environment, or null",
    "dataset": "that the policy was trained on",
    "updates": "that the policy was trained for",
    "architecture": "arguments of the networks (torch), or null (onnx)",
    "verification": "how the files were compared with the checkpoint",
    "versions": "of the packages that wrote the files",
}


class PolicyError(ValueError):
    """An exported policy cannot be used, or is used wrongly; the message says why."""


def read_metadata(folder: Path) -> dict[str, Any]:
    """An exported folder's metadata.json, once it and the files it names are found whole.

    Raises:
        PolicyError: otherwise.
    """
    if folder.is_file():
        raise PolicyError(
            f"policy {folder}: expected a folder that tql export wrote, found a file; tql export it first"
        )
    path = folder / METADATA_FILE
    if not path.is_file():
        raise PolicyError(f"policy {folder}: expected a folder that tql export wrote, found no {METADATA_FILE} in it")
    try:
        if path.stat().st_size > MOST_METADATA_BYTES:
            raise ValueError(f"larger than {MOST_METADATA_BYTES >> 20} MiB")
        metadata: dict[str, Any] = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
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
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != metadata["files"].get(name):
            raise PolicyError(f"policy {folder}: {name} is not the file that was exported; copy or export it again")
    return metadata


def _check_numbers(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Refuses sizes and bounds that cannot be."""
    sizes = [metadata["observation_dim"], metadata["action_dim"], metadata["action_chunk"]]
    shape, bounds = metadata["noise_shape"], [metadata["action_low"], metadata["action_high"]]
    sane = (
        all(type(size) is int and 1 <= size <= LARGEST for size in sizes)
        and isinstance(shape, list)
        and len(shape) <= MOST_DIMENSIONS
        and all(type(size) is int and 1 <= size <= LARGEST for size in shape)
        and math.prod(shape) <= LARGEST
        and sizes[1] * sizes[2] <= LARGEST
        and isinstance(metadata["files"], dict)
        and all(isinstance(bound, list) and len(bound) == sizes[1] for bound in bounds)
        and all(isinstance(value, int | float) and -LARGEST <= value <= LARGEST for bound in bounds for value in bound)
    )
    if not sane:
        raise PolicyError(
            f"policy {folder}: {METADATA_FILE}: sizes, noise_shape, files or action bounds are not what tql export "
            f"writes: found sizes {', '.join(map(shown, sizes))}, noise_shape {shown(shape)}"
        )
