"""Checks a model's settings and writes them so that its checkpoint loads without pickle."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

ALGORITHM = "algorithm"  # key of the model's class in a checkpoint
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # function that Lightning makes the model with


def loadable(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Writes classes and dataclasses among hyperparameters as class path and arguments; drops other callables."""
    described = {name: describe(value) for name, value in hyperparameters.items()}
    kept = {name: value for name, value in described.items() if not callable(value)}
    return {"_instantiator": INSTANTIATOR, **kept}


def describe(value: Any) -> Any:
    """Writes a class, a partial of one or a dataclass as class path and arguments, recursively; else the value."""
    factory: object = value
    arguments: dict[str, Any] = {}
    if isinstance(value, partial):
        factory, arguments = value.func, value.keywords
    elif is_dataclass(value) and not isinstance(value, type):
        factory, arguments = type(value), {part.name: getattr(value, part.name) for part in fields(value)}
    if not isinstance(factory, type):
        return value
    described = {name: describe(argument) for name, argument in arguments.items()}
    return {"class_path": class_path(factory), "init_args": described}


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
