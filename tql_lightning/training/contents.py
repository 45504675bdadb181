"""Checks what a checkpoint holds, and makes its model from what was checked alone."""

from __future__ import annotations

import math
from argparse import ArgumentError
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import instantiate_module

from tql_lightning.data.environment import check_env_id
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import read_checkpoint
from tql_lightning.system.private_api import given_hyperparameters
from tql_lightning.training.hyperparameters import ALGORITHM, INSTANTIATOR, class_path, regrouped
from tql_lightning.trust.building import building_no_more_than
from tql_lightning.trust.class_paths import IMPORTABLE, arguments_of, check_class_paths
from tql_lightning.trust.imports import import_if_allowed
from tql_lightning.trust.text import shown

LONGEST_REASON = 200  # characters of a library's message
MOST_SHOWN = 5
Model = TypeVar("Model", bound=LightningModule)


def class_of(
    path: Path | str, raw: dict[str, Any], base: type[Model], default: type[Model], trusted: bool = False
) -> type[Model]:
    """Imports the class of a checkpoint's algorithm.

    Args:
        path: Path of the checkpoint, for messages.
        raw: Contents of the checkpoint.
        base: Class that it must be, or be a subclass of.
        default: Class of a checkpoint that names none; it is not imported again where it is named.
        trusted: Whether any module may be imported.

    Raises:
        CheckpointError: The name is not such a class, or its module may not be imported.
    """
    named = raw.get(ALGORITHM, class_path(default))
    if named == class_path(default):
        return default
    try:
        found = import_if_allowed(named, IMPORTABLE, trusted) if isinstance(named, str) else named
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: its algorithm cannot be loaded ({error})") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CheckpointError(f"checkpoint {path}: expected an algorithm's class, found {shown(named)}")
    return found


def checked_settings(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns the model's settings in a checkpoint that `check_contents` has accepted."""
    return {name: value for name, value in raw["hyper_parameters"].items() if name != "_instantiator"}


def make_model(
    path: Path | str,
    raw: dict[str, Any],
    kind: type[Model],
    given: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> Model:
    """Makes a model from checked settings only; Lightning would also use unchecked keys and read the file again.

    Args:
        path: Path of the checkpoint, for messages.
        raw: Contents of the checkpoint, which `check_contents` has accepted.
        kind: Class of the model.
        given: Settings that replace the checkpoint's.
        strict: Whether weights must be exactly those of the model.

    Raises:
        CheckpointError: The settings or weights do not fit the class.
    """
    settings, weights = checked_settings(raw) | dict(given or {}), raw["state_dict"]
    try:
        with given_hyperparameters(settings, INSTANTIATOR):  # so that the model can be saved again
            with building_no_more_than(weights.values()), suppress(Exception), torch.device("meta"):
                # Checks sizes without memory. A user's part that fails on the meta device is made and checked below.
                instantiate_module(kind, settings)
            with building_no_more_than(weights.values()):
                model: Model = instantiate_module(kind, settings)
        model.configure_model()
        model.on_load_checkpoint({name: raw[name] for name in ("global_step", "validated_update") if name in raw})
        model.load_state_dict(weights, strict=strict)
    except (
        KeyError,
        TypeError,
        RuntimeError,
        ValueError,
        ImportError,
        AttributeError,
        ArithmeticError,
        ArgumentError,
    ) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise CheckpointError(f"checkpoint {path}: does not fit its model ({reason})") from error
    return model


def load_as(
    path: Path | str, kind: type[Model], base: type[Any], map_location: Any, given: Mapping[str, Any], strict: bool
) -> Model:
    """Loads a checkpoint as a class, or as the subclass of it that the checkpoint names.

    Args:
        path: Path of the checkpoint.
        kind: Class of the model.
        base: Class that every algorithm has.
        map_location: Device of the weights.
        given: See `make_model`.
        strict: See `make_model`.

    Raises:
        CheckpointError: The file is missing, damaged, of another class, or does not fit.
    """
    raw = read_checkpoint(path, map_location)
    found: type[Any] = class_of(path, raw, base, kind)
    made: type[Any] = kind if issubclass(kind, found) else found
    if not issubclass(made, kind):
        raise CheckpointError(
            f"checkpoint {path}: expected one of {class_path(kind)}, found one of {class_path(found)}; "
            f"load it with {found.__name__}"
        )
    check_contents(path, raw, made, plays=False)
    model: Model = make_model(path, raw, made, given, strict)
    return model.to(next(iter(raw["state_dict"].values()), torch.tensor(0)).device)


def check_contents(
    path: Path | str, raw: dict[str, Any], kind: type, trusted: bool = False, plays: bool = True
) -> None:
    """Checks settings, classes and weights that Lightning would ignore or use unchecked.

    Args:
        path: Path of the checkpoint, for messages.
        raw: Contents of the checkpoint.
        kind: Class of its algorithm.
        trusted: Whether any module may be imported; for checkpoints that this program has just written.
        plays: Whether the checkpoint's environment will be made.

    Raises:
        CheckpointError: A setting is unknown, a class is not a part of the algorithm, or a weight is not finite.
    """
    settings, weights = raw.get("hyper_parameters"), raw["state_dict"]
    if settings is None:
        raise CheckpointError(f"checkpoint {path}: expected one that tql fit wrote, found one without settings")
    if not isinstance(settings, dict) or not isinstance(weights, dict):
        raise CheckpointError(f"checkpoint {path}: does not fit its model (expected settings and weights by name)")
    raw["hyper_parameters"] = regrouped(settings, kind)
    check_settings(path, raw["hyper_parameters"], kind, trusted)
    _check_data(path, raw, plays and not trusted)
    strange = [name for name, each in weights.items() if not _is_real_tensor(each)]
    if strange:
        raise CheckpointError(
            f"checkpoint {path}: does not fit its model "
            f"({shown(strange[0])} is no tensor of real numbers, or claims more than it holds)"
        )
    broken = [name for name, each in weights.items() if not torch.isfinite(each).all()]
    if broken:
        raise CheckpointError(
            f"checkpoint {path}: {len(broken)} of its weights hold NaN or infinite numbers, first {shown(broken[0])}; "
            "training diverged: use an earlier checkpoint"
        )


def check_settings(path: Path | str, settings: dict[str, Any], kind: type, trusted: bool = False) -> None:
    """Checks that a class can be made from settings, and that every class that they name is a part of it.

    Raises:
        CheckpointError: A setting is unknown or not allowed, or a class is not a part of the algorithm.
    """
    own = {name: value for name, value in settings.items() if name != "_instantiator"}
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


def _check_data(path: Path | str, raw: dict[str, Any], with_environment: bool) -> None:
    """Rejects malformed records of the data, and environments that a checkpoint must not make."""
    data = raw.get("OfflineDataModule", {})
    fits = isinstance(data, dict) and isinstance(data.get("env_id"), str | None)
    for name in ("action_low", "action_high", "reference_scores"):
        value = data.get(name) if fits else None
        fits = fits and (value is None or (isinstance(value, list | tuple) and all(map(_is_number, value))))
    if not fits:
        raise CheckpointError(f"checkpoint {path}: expected what tql fit says of its data, found something else")
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
