"""Checkpoints that are written atomically, carry a checksum, and are loaded with weights only.

The checksum is the comment of the zip archive that ``torch.save`` writes: ``tql-sha256:`` and the SHA-256 of the
archive without a comment. Weights and checksum are thus one file, which is renamed, copied, linked and deleted as one.
``torch.load`` and plain Lightning read it, since a comment is part of the zip format. An archive without a comment, as
plain Lightning writes it, is checked by the CRC-32 of its parts.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO

from tql_lightning.run.checkpoint_file import SUFFIX, CheckpointError, require_checkpoint_file
from tql_lightning.system.files import remove_leftovers, write_whole
from tql_lightning.system.full_disk import unwritten
from tql_lightning.system.private_api import wraps_checkpoint_io
from tql_lightning.trust.archive import blocks, is_intact, read_archive
from tql_lightning.trust.plain_values import plain
from tql_lightning.trust.text import shown
from tql_lightning.trust.torch_file import check_torch_file, check_torch_stream

MOST_UPDATES = 10**15

_MARK = b"tql-sha256:"
_LENGTH_FIELD = 2  # bytes: the comment's length, which stands right before it
_KINDS = {
    **dict.fromkeys(("state_dict", "loops", "callbacks", "hyper_parameters"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
    "pytorch-lightning_version": str,
}
_OLD_KEYS = (  # Lightning merges them into the checked settings, and into the states of callbacks
    *("hparams", "module_arguments", "hparams_type", "early_stop_callback_wait", "early_stop_callback_patience"),
    *(f"checkpoint_callback_best{each}" for each in ("", "_model_score", "_model_path")),
)
_UNREADABLE = (  # raised by torch.load for bytes that are no checkpoint
    *(pickle.PickleError, zipfile.BadZipFile, struct.error, EOFError, OSError, RuntimeError, MemoryError),
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
)


class CheckpointWriteError(OSError):
    """A checkpoint cannot be written; the message gives path, reason and free space."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin with atomic writes, checksums, and loading with weights only.

    Each checkpoint is written to a temporary file, fsynced and renamed; loading compares the checksum. The first write
    into a folder removes temporary files of interrupted writes. ``tql fit`` uses this plugin unless
    ``trainer.plugins`` names another ``CheckpointIO``. From Python: ``Trainer(plugins=WholeCheckpointIO())``. URLs
    (``s3://...``) are written and read by Lightning's own plugin.

    Examples:
        >>> checkpoint = WholeCheckpointIO().load_checkpoint("runs/script/seed_0/checkpoints/last.ckpt")
        >>> "state_dict" in checkpoint
        True
    """

    def __init__(self) -> None:
        self._cleaned: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint; the old file stays until the new one is complete.

        Raises:
            TypeError: ``storage_options`` are given.
            CheckpointWriteError: it cannot be written; ``path`` is unchanged.
        """
        if storage_options is not None or _is_address(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        folder = Path(path).absolute().parent
        if folder not in self._cleaned:
            remove_leftovers(folder, SUFFIX)
            self._cleaned.add(folder)
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint; see `read_checkpoint`.

        Raises:
            CheckpointError: it is missing or damaged, or holds more than weights.
            ValueError: ``weights_only`` is False.
        """
        if weights_only is False:
            raise ValueError("weights_only: checkpoints are loaded with weights only, found false; leave it out")
        if _is_address(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(path, map_location)


def base_io(checkpoint_io: CheckpointIO | None) -> CheckpointIO | None:
    """The plugin inside wrappers such as Lightning's ``AsyncCheckpointIO``; None if it is not set yet."""
    inner: Any = checkpoint_io
    while wraps_checkpoint_io(inner):
        inner = inner.checkpoint_io
    found: CheckpointIO | None = inner
    return found


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes what ``torch.save`` does and its checksum, atomically.

    Raises:
        CheckpointWriteError: it cannot be written; ``path`` is unchanged.
    """
    failed: list[OSError] = []
    try:
        with write_whole(path) as file:
            hashing: Any = _HashingWriter(file, failed)
            torch.save(checkpoint, hashing)
            comment = _MARK + hashing.digest.hexdigest().encode()
            file.seek(-_LENGTH_FIELD, 2)
            file.write(len(comment).to_bytes(_LENGTH_FIELD, "little") + comment)
    except OSError as error:
        raise CheckpointWriteError(f"checkpoint {unwritten(path, error)}") from error
    except RuntimeError as error:  # torch raises it in place of the file's error
        if not failed:
            raise
        raise CheckpointWriteError(f"checkpoint {unwritten(path, failed[0])}") from error


def read_checkpoint(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Reads a checkpoint after comparing its checksum. Nothing in it is executed.

    Args:
        path: File that Lightning wrote, with or without `WholeCheckpointIO`.
        map_location: Device of the tensors, as in ``torch.load``.
        mmap: Whether to map the file into memory and read tensors at first use.

    Raises:
        CheckpointError: the file is missing or damaged, holds more than weights, or is not Lightning's.
    """
    path = Path(path)
    require_checkpoint_file(path)
    try:
        check_torch_file(path, _allowed_by_the_user())
        intact = _is_intact(path)
        raw = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap) if intact else None
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        # torch's message advises to load with pickle; only the name that it found is of use.
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"refers to {found[1]}" if found else "is no file of torch.save"
        raise CheckpointError(f"checkpoint {path}: damaged, or holds more than weights (it {what})") from error
    except _UNREADABLE as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path}: damaged, or holds more than weights ({first})") from error
    if not intact:
        raise CheckpointError(
            f"checkpoint {path}: damaged, its content does not match its checksum; use another checkpoint"
        )
    if not isinstance(raw, dict) or not {"state_dict", "global_step"} <= raw.keys():
        raise CheckpointError(f"checkpoint {path}: expected one that tql fit wrote, found something else")
    _check_parts(path, raw)
    return raw


def _check_parts(path: Path | str, raw: dict[str, Any]) -> None:
    """Refuses old settings, numbers of updates that no run reaches, and parts of other types than Lightning's."""
    for name, least in (("global_step", 0), ("validated_update", -1), ("epoch", 0)):  # -1: before the first validation
        value = raw.get(name, 0)
        if type(value) is not int or not least <= value <= MOST_UPDATES:
            raise CheckpointError(
                f"checkpoint {path}: {name}: expected a whole number up to {MOST_UPDATES:,}, found {shown(value)}"
            )
    for name, kind in _KINDS.items():
        if name in raw and not isinstance(raw[name], kind):
            raise CheckpointError(
                f"checkpoint {path}: {name}: expected a {kind.__name__}, found {type(raw[name]).__name__}"
            )
    counted = _uncounted(raw.get("loops", {}), "loops")
    if counted is not None:
        raise CheckpointError(
            f"checkpoint {path}: {shown(counted[0])}: expected a whole number up to {MOST_UPDATES:,}, found "
            f"{shown(counted[1])}"
        )
    for name, state in raw.get("callbacks", {}).items():
        if isinstance(state, dict) and "best_model_path" in state and not _names_own_files(state):
            raise CheckpointError(
                f"checkpoint {path}: callback {shown(name)}: expected the files of its own folder, which Lightning "
                "removes in time, found others; train anew, or use a checkpoint that tql fit wrote"
            )
    old = [name for name in _OLD_KEYS if name in raw]
    if raw.get("hparams_name") not in (None, "kwargs"):
        old.append("hparams_name")
    if old:
        raise CheckpointError(
            f"checkpoint {path}: expected settings under hyper_parameters alone, found {', '.join(old)} of an early "
            "Lightning version; train anew, or use a checkpoint that tql fit wrote"
        )


def _uncounted(states: dict[Any, Any], name: str) -> tuple[str, Any] | None:
    """Name and value of a count in the states of Lightning's loops that is none; None if all are."""
    for key, part in states.items():
        if isinstance(part, dict):
            below = _uncounted(part, f"{name}.{key!s:.80}")
            if below is not None:
                return below
        elif name.endswith((".current", ".total")) and (type(part) is not int or not 0 <= part <= MOST_UPDATES):
            return f"{name}.{key!s:.80}", part
    return None


def _names_own_files(state: dict[str, Any]) -> bool:
    """Whether the state of a ``ModelCheckpoint`` is of its types, and its paths lead neither upwards nor elsewhere."""
    best, kth = state.get("best_k_models", {}), state.get("kth_best_model_path", "")
    paths = [
        state["best_model_path"],
        state.get("last_model_path", ""),
        kth,
        *(best if isinstance(best, dict) else [0]),
    ]
    return (
        all(isinstance(each, str) and ".." not in Path(each).parts and not _is_address(each) for each in paths)
        and all(isinstance(each, torch.Tensor) for each in best.values())
        and (not kth or kth in best)
    )


class _HashingWriter:
    """File that hashes all that is written to it, in order."""

    def __init__(self, file: BinaryIO, failed: list[OSError]) -> None:
        self._file, self._failed = file, failed
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self._failed.append(error)
            raise

    def flush(self) -> None:
        self._file.flush()


def _is_intact(path: Path) -> bool:
    """Whether a file's content matches its checksum; without one, whether its parts match their CRC-32."""
    with path.open("rb") as file:
        archive = read_archive(file)
        if not archive.comment:
            return is_intact(file, archive)
        digest = hashlib.sha256()
        left = file.seek(0, 2) - len(archive.comment) - _LENGTH_FIELD
        file.seek(0)
        for block in blocks(file, left):
            digest.update(block)
        digest.update(bytes(_LENGTH_FIELD))
        return archive.comment == _MARK + digest.hexdigest().encode()


def make_plain(checkpoint: dict[str, Any]) -> None:
    """Converts, in place, what a checkpoint is to hold into what can be read back with weights only.

    Raises:
        ValueError: A value cannot be converted exactly; the message names the callback, the setting or the key.
    """
    for name, parts, key in _named_parts(checkpoint):
        parts[key] = plain(parts[key], name)


def require_readable(checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint to memory, without the tensors' numbers, and reads it back.

    Raises:
        ValueError: It could not be read; the message names the callback, the setting or the key.
        CheckpointError: `read_checkpoint` would reject it as a whole.
    """
    for name, parts, key in _named_parts(checkpoint):
        stream = BytesIO()
        try:
            torch.save(plain(parts[key], name, tensor_as=_emptied), stream)
            check_torch_stream(stream, _allowed_by_the_user())
            stream.seek(0)
            torch.load(stream, weights_only=True)
        except _UNREADABLE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{name}: would be saved and could not be read back ({reason}); leave it out") from error
    _check_parts("of this run", checkpoint)


def _named_parts(checkpoint: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """Names for messages, with where each part is: every callback's state is one."""
    callbacks = checkpoint.get("callbacks", {})
    parts = [(f"callback {name}: state_dict", callbacks, name) for name in callbacks]
    for key in checkpoint:
        if key != "callbacks":
            parts.append(("model" if key == "hyper_parameters" else f"checkpoint: {key}", checkpoint, key))
    return parts


def _emptied(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same kind without numbers, if it is a common one."""
    common = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    special = tensor.is_quantized or tensor.is_meta or tensor.is_nested
    return torch.empty(0, dtype=tensor.dtype) if common and not special else tensor


def _allowed_by_the_user() -> list[str]:
    """Dotted names that ``torch.serialization.add_safe_globals`` was called with."""
    given = [each if isinstance(each, tuple) else (each, None) for each in torch.serialization.get_safe_globals()]
    return [name or f"{each.__module__}.{each.__qualname__}" for each, name in given]


def _is_address(path: str | Path) -> bool:
    return "://" in str(path)
