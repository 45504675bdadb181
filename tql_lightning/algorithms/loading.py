"""Loads a checkpoint's algorithm without pickle, after checking every name in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tql_lightning.algorithms.tql import TQL
from tql_lightning.run.checkpoint_io import read_checkpoint
from tql_lightning.training import contents
from tql_lightning.training.algorithm import Algorithm


def load_checkpoint(path: Path | str, trusted: bool = False, plays: bool = True) -> tuple[Algorithm, dict[str, Any]]:
    """Loads a model in evaluation mode, and returns it with the contents of its checkpoint.

    Classes that the checkpoint names are checked before they are imported; see `check_class_paths`.

    Args:
        path: Path of a checkpoint that `tql fit` wrote.
        trusted: Whether any module may be imported; for checkpoints that this program has just written.
        plays: Whether the checkpoint's environment will be created.

    Raises:
        CheckpointError: The file is missing, damaged, or not a checkpoint of an algorithm.
    """
    raw = read_checkpoint(path)
    kind = check_contents(path, raw, trusted, plays)
    return contents.make_model(path, raw, kind).eval(), raw


def check_contents(path: Path | str, raw: dict[str, Any], trusted: bool = False, plays: bool = True) -> type[Algorithm]:
    """Checks what `load_checkpoint` does before it makes anything; returns the algorithm's class.

    Args:
        path: Path of the checkpoint, for messages.
        raw: Contents of the checkpoint. One that names no algorithm is TQL's.
        trusted: See `load_checkpoint`.
        plays: See `load_checkpoint`.

    Raises:
        CheckpointError: A setting is unknown, a class is not a part of the algorithm, or a weight is not finite.
    """
    kind = contents.class_of(path, raw, Algorithm, TQL, trusted)  # type: ignore[type-abstract]
    contents.check_contents(path, raw, kind, trusted, plays)
    return kind
