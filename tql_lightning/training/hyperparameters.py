"""A model's settings: checked, and in a form that its checkpoint can be loaded from without pickle."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import partial
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
from torch import Tensor

from tql_lightning.trust.class_paths import arguments_of
from tql_lightning.trust.plain_values import plain

SCALARS = (bool, int, float, str, NoneType)
PLAIN = (*SCALARS, tuple)  # arguments that stand in a checkpoint as they are
ALGORITHM = "algorithm"  # key of the model's class in a checkpoint
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # function that Lightning makes the model with
NOW_IN = {  # setting of earlier versions -> the setting that it is a part of now
    **dict.fromkeys(("action_chunk", "reward_range", "final_reward_range"), "problem"),
    **dict.fromkeys(("acting_temperature", "exploration_temperature"), "policy"),
    **dict.fromkeys(("actor_noise", "actor_noise_clip"), "smoothing"),
    **dict.fromkeys(
        ("noise_samples", "noise_coverage", "reward_margin", "train_at_zero_only", "release_range"), "return_flow"
    ),
    **dict.fromkeys(("sparse", "monte_carlo", "clip_target", "release_returns"), "returns"),
}


def loadable(hyperparameters: dict[str, Any], of: type) -> dict[str, Any]:
    """Writes a class's hyperparameters as plain values, with parts as class path and arguments.

    Raises:
        ValueError: A setting cannot be written, such as a part made by a lambda, or could not be read back, as it is
            not of its annotation's type; the message names it.
    """
    parameters, hints = signature(of).parameters, arguments_of(of)
    described = {"_instantiator": INSTANTIATOR}
    for name, value in hyperparameters.items():
        default = parameters[name].default if name in parameters else Parameter.empty
        if callable(value) and value is default and not isinstance(value, type | partial):
            continue  # loading takes the default again
        if isinstance(value, partial) and value.func.__module__.startswith("jsonargparse"):
            continue  # a parser made it, whose configuration Lightning keeps instead
        part = describe(unlike(value, default) if name in parameters else value, f"model.{name}", hints.get(name))
        if callable(part) or "<locals>" in (
            part["class_path"] if isinstance(part, dict) and "class_path" in part else ""
        ):
            found = part["class_path"] if isinstance(part, dict) else getattr(part, "__qualname__", type(part).__name__)
            raise ValueError(
                f"model.{name}: expected a class or a functools.partial of one, which a checkpoint can name, found "
                f"{found}; define a class in a module, outside of functions"
            )
        described[name] = plain(part, f"model.{name}", array_as=np.ndarray.tolist)
    return described


def regrouped(settings: dict[str, Any], of: type) -> dict[str, Any]:
    """Settings of a checkpoint, with those that earlier versions held flat moved to where a class takes them now."""
    own, found = arguments_of(of), dict(settings)
    for name, group in NOW_IN.items():
        if name not in found or name in own or group not in own:
            continue
        part = found.get(group, {"class_path": class_path(own[group])} if is_dataclass(own[group]) else None)
        if isinstance(part, dict) and isinstance(arguments := part.get("init_args", {}), dict):
            found[group] = {**part, "init_args": {name: found.pop(name), **arguments}}
    return found


def describe(value: Any, name: str, hint: Any = None) -> Any:
    """Writes a class, a partial of one or a dataclass as class path and arguments, recursively; else the value.

    Args:
        value: Value of a setting.
        name: Its name in errors.
        hint: Annotation of the parameter that takes it; None where it is unknown.

    Raises:
        ValueError: A number, text or tensor is not of the annotation's type, with which it would be read back.
    """
    factory: object = value
    arguments: dict[str, Any] = {}
    if isinstance(value, partial):
        factory, arguments = value.func, value.keywords
    elif is_dataclass(value) and not isinstance(value, type):
        factory, arguments = type(value), {part.name: getattr(value, part.name) for part in fields(value)}
    if not isinstance(factory, type):
        _require_type(value, name, hint)
        return value
    hints = arguments_of(factory)
    described = {key: describe(argument, f"{name}.{key}", hints.get(key)) for key, argument in arguments.items()}
    return {"class_path": class_path(factory), "init_args": described}


def _require_type(value: Any, name: str, hint: Any) -> None:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, Tensor):
        fits = not {Tensor, None, Any}.isdisjoint(options)
    elif {*options} <= {*SCALARS}:
        kind = type(plain(value, name))
        fits = kind in options or (kind is int and float in options)
    else:
        return
    if not fits:
        names = ["None" if option is NoneType else getattr(option, "__name__", str(option)) for option in options]
        raise ValueError(
            f"{name}: expected {' or '.join(names)}, found {value!r:.80}; a checkpoint could not be read back with it"
        )


def unlike(value: Any, default: Any) -> Any:
    """A part with its own defaults as arguments, where those of a setting's default class would replace them."""
    kind, given = (value.func, value.keywords) if isinstance(value, partial) else (value, {})
    other, preset = (default.func, default.keywords) if isinstance(default, partial) else (default, {})
    if not (isinstance(kind, type) and isinstance(other, type)):
        return value
    replaced = preset.keys() if kind is other else signature(other).parameters.keys()
    own = {
        parameter.name: parameter.default
        for parameter in signature(kind).parameters.values()
        if parameter.name in replaced and isinstance(parameter.default, PLAIN)
    }
    return partial(kind, **(own | given)) if own else value


def class_path(kind: type) -> str:
    """The dotted name that a class is imported by."""
    return f"{kind.__module__}.{kind.__qualname__}"


def require(name: str, condition: bool, expected: str, found: object) -> None:
    """Checks a setting of the model.

    Raises:
        ValueError: the condition does not hold; the message names the setting, what was expected and what was found.
    """
    if not condition:
        raise ValueError(f"model.{name}: expected {expected}, found {found}")
