"""A model's settings: checked, and in a form that its checkpoint can be loaded from without pickle."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import partial
from inspect import signature
from typing import Any

ALGORITHM = "algorithm"  # key of a checkpoint under which its class stands
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # what makes a model from its settings


def loadable(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters with their parts as class path and arguments; callables without one are left out."""
    described = {name: describe(value) for name, value in hyperparameters.items()}
    kept = {name: value for name, value in described.items() if not callable(value)}
    return {"_instantiator": INSTANTIATOR, **kept}


def describe(value: Any) -> Any:
    """A class, a partial of one, or a dataclass as class path and arguments, and so its arguments; else the value.

    Defaults are among the arguments: whoever makes the part again may have other ones, as where a setting's own default
    is another class with an argument of the same name.
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
    return {name: value for name, value in defaults.items() if _can_be_held(describe(value))}


def _can_be_held(value: Any) -> bool:
    """Whether a described value is made of numbers, text and nothing, in lists and mappings."""
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
        ValueError: the condition does not hold; the message names the setting, what was expected and what was found.
    """
    if not condition:
        raise ValueError(f"model.{name}: expected {expected}, found {found}")
