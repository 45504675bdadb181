"""Checks a model's settings and writes them so that its checkpoint loads without pickle."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import partial
from inspect import signature
from typing import Any

ALGORITHM = "algorithm"  # key of the model's class in a checkpoint
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # function that Lightning makes the model with


def loadable(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Writes classes and dataclasses among hyperparameters as class path and arguments; drops other callables."""
    described = {name: describe(value) for name, value in hyperparameters.items()}
    kept = {name: value for name, value in described.items() if not callable(value)}
    return {"_instantiator": INSTANTIATOR, **kept}


def describe(value: Any) -> Any:
    """Writes a class, a partial of one or a dataclass as class path and arguments, recursively; else the value.

    The arguments include defaults, since a setting's own default may be another class with an argument of the same name
    and another default.
    """
    factory: object = value
    arguments: dict[str, Any] = {}
    if isinstance(value, partial):
        factory, arguments = value.func, value.keywords
    elif is_dataclass(value) and not isinstance(value, type):
        factory, arguments = type(value), {part.name: getattr(value, part.name) for part in fields(value)}
    if not isinstance(factory, type):
        return value
    described = {name: describe(argument) for name, argument in (_defaults(factory) | arguments).items()}
    return {"class_path": class_path(factory), "init_args": described}


def _defaults(kind: type) -> dict[str, Any]:
    """A class's defaults by name, as far as a checkpoint can hold them."""
    parameters = signature(kind).parameters.values()
    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty
    }
    return {name: value for name, value in defaults.items() if _can_be_held(value)}


def _can_be_held(value: Any) -> bool:
    """Whether a value is made of numbers, text and nothing, in lists and mappings."""
    if isinstance(value, dict):
        return all(map(_can_be_held, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_can_be_held, value))
    return value is None or isinstance(value, bool | int | float | str)


def class_path(kind: type) -> str:
    """The dotted name that a class is imported by."""
    return f"{kind.__module__}.{kind.__qualname__}"


def require(name: str, condition: bool, expected: str, found: object) -> None:
    """Checks a setting of the model.

    Raises:
        ValueError: The condition is false; the message names the setting, what was expected and what was found.
    """
    if not condition:
        raise ValueError(f"model.{name}: expected {expected}, found {found}")
