"""Loads a checkpoint's algorithm without pickle, after checking every name in it."""

from __future__ import annotations

import math
from argparse import ArgumentError
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_module

from tql_lightning.algorithms.tql import TQL
from tql_lightning.data.environment import check_env_id
from tql_lightning.run.checkpoint_io import CheckpointError, read_checkpoint
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.hyperparameters import ALGORITHM, INSTANTIATOR
from tql_lightning.trust.building import building_no_more_than
from tql_lightning.trust.class_paths import IMPORTABLE, arguments_of, check_class_paths
from tql_lightning.trust.imports import import_if_allowed
from tql_lightning.trust.text import shown

LONGEST_REASON = 200  # characters of a library's message
MOST_SHOWN = 5  # unknown settings that a message names


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
    try:
        model = _make_model(kind, raw)
    except (KeyError, TypeError, RuntimeError, ValueError, ImportError, AttributeError, ArgumentError) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise CheckpointError(f"checkpoint {path}: does not fit its model ({reason})") from error
    return model.eval(), raw


def _make_model(kind: type[Algorithm], raw: dict[str, Any]) -> Algorithm:
    """Makes the model from checked settings only; Lightning would also use unchecked keys and read the file again."""
    weights = raw["state_dict"]
    with building_no_more_than(weights.values()), suppress(Exception), torch.device("meta"):
        # Checks sizes without memory. A user's part that fails on the meta device is made and checked below.
        instantiate_module(kind, checked_settings(raw))
    with building_no_more_than(weights.values()):
        model: Algorithm = instantiate_module(kind, checked_settings(raw))
    model.configure_model()
    model.on_load_checkpoint({name: raw[name] for name in ("global_step", "validated_update") if name in raw})
    model.load_state_dict(weights)
    return model


def checked_settings(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns the model's settings in a checkpoint that `check_contents` has accepted."""
    return {name: value for name, value in raw["hyper_parameters"].items() if name != "_instantiator"}


def algorithm_of(path: Path | str, raw: dict[str, Any], trusted: bool = False) -> type[Algorithm]:
    """Imports the class of a checkpoint's algorithm; TQL for a checkpoint that names none.

    Args:
        path: Path of the checkpoint, for messages.
        raw: Contents of the checkpoint.
        trusted: Whether any module may be imported.

    Raises:
        CheckpointError: The name is not an algorithm, or its module may not be imported.
    """
    named = raw.get(ALGORITHM, f"{TQL.__module__}.{TQL.__qualname__}")
    try:
        found = import_if_allowed(named, IMPORTABLE, trusted) if isinstance(named, str) else named
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: its algorithm cannot be loaded ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise CheckpointError(f"checkpoint {path}: expected an algorithm's class, found {shown(named)}")
    return found


def check_contents(path: Path | str, raw: dict[str, Any], trusted: bool = False, plays: bool = True) -> type[Algorithm]:
    """Checks settings, classes and weights that Lightning would ignore or use unchecked; returns the algorithm's class.

    Args:
        path: Path of the checkpoint, for messages.
        raw: Contents of the checkpoint.
        trusted: See `load_checkpoint`.
        plays: See `load_checkpoint`.

    Raises:
        CheckpointError: A setting is unknown, a class is not a part of the algorithm, or a weight is not finite.
    """
    settings, weights = raw.get("hyper_parameters"), raw["state_dict"]
    if settings is None:
        raise CheckpointError(f"checkpoint {path}: expected one that tql fit wrote, found one without settings")
    if not isinstance(settings, dict) or not isinstance(weights, dict):
        raise CheckpointError(f"checkpoint {path}: does not fit its model (expected settings and weights by name)")
    kind = algorithm_of(path, raw, trusted)
    own = checked_settings(raw)
    unknown = [shown(name) for name in own if name not in arguments_of(kind)]
    if unknown:
        more = f" and {len(unknown) - MOST_SHOWN} more" if len(unknown) > MOST_SHOWN else ""
        raise CheckpointError(
            f"checkpoint {path}: does not fit its model (unknown settings {', '.join(unknown[:MOST_SHOWN])}{more})"
        )
    if settings.get("_instantiator", INSTANTIATOR) != INSTANTIATOR:
        raise CheckpointError(
            f"checkpoint {path}: does not fit its model (to be made by {shown(settings['_instantiator'])})"
        )
    try:
        check_class_paths(own, kind, trusted)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: does not fit its model ({error})") from error
    _check_data(path, raw, plays and not trusted)
    strange = [name for name, each in weights.items() if not _is_real_tensor(each)]
    if strange:
        raise CheckpointError(
            f"checkpoint {path}: does not fit its model "
            f"({shown(strange[0])} is no tensor of real numbers, or its shape claims more elements than are stored)"
        )
    broken = [name for name, each in weights.items() if not torch.isfinite(each).all()]
    if broken:
        raise CheckpointError(
            f"checkpoint {path}: {len(broken)} of its weights hold NaN or infinite numbers, first {shown(broken[0])}; "
            "training diverged; use an earlier checkpoint"
        )
    return kind


def _check_data(path: Path | str, raw: dict[str, Any], with_environment: bool) -> None:
    """Rejects malformed records of the data, and environments that a checkpoint must not create."""
    data = raw.get("OfflineDataModule", {})
    fits = isinstance(data, dict) and isinstance(data.get("env_id"), str | None)
    for name in ("action_low", "action_high", "reference_scores"):
        value = data.get(name) if fits else None
        fits = fits and (value is None or (isinstance(value, list | tuple) and all(map(_is_number, value))))
    if not fits:
        raise CheckpointError(f"checkpoint {path}: expected what tql fit says of its data, found other values")
    try:
        if with_environment:
            check_env_id(data.get("env_id"))
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: {error}; or name another environment with --env") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_real_tensor(value: object) -> bool:
    """Whether a value is a real tensor that holds each element, not repeated by strides, as training saves them."""
    if not isinstance(value, torch.Tensor) or value.is_complex() or value.is_quantized or value.is_meta:
        return False
    if value.layout != torch.strided:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()
