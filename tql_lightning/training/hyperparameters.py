"""A model's settings: checked, and in a form that its checkpoint can be loaded from without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import signature
from typing import Any

PLAIN = (bool, int, float, str, tuple, type(None))  # arguments that stand in a checkpoint as they are
ALGORITHM = "algorithm"  # key of the model's class in a checkpoint
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # function that Lightning makes the model with


def loadable(hyperparameters: dict[str, Any], of: type) -> dict[str, Any]:
    """Writes a class's hyperparameters, with parts as class path and arguments; drops factories that a parser made."""
    parameters = signature(of).parameters
    described = {
        name: describe(unlike(value, parameters[name].default) if name in parameters else value)
        for name, value in hyperparameters.items()
    }
    kept = {name: value for name, value in described.items() if not callable(value)}
    return {"_instantiator": INSTANTIATOR, **kept}


def require_loadable(hyperparameters: Mapping[str, Any]) -> None:
    """Rejects parts that no checkpoint can name, such as lambdas and networks already made.

    Raises:
        ValueError: The message names the setting.
    """
    for name, value in hyperparameters.items():
        if isinstance(value, Mapping):
            require_loadable({f"{name}.{key}": part for key, part in value.items()})
        described = describe(value)
        if isinstance(described, dict) and described.keys() == {"class_path", "init_args"}:
            given = value.keywords if isinstance(value, partial) else {}
            require_loadable({f"{name}.{key}": part for key, part in given.items()})
        elif callable(described) and not _made_by_a_parser(value):
            found = getattr(value, "__name__", None) or f"a {type(value).__name__} already made"
            raise ValueError(
                f"model.{name}: expected a class, or functools.partial of one with its settings, found {found}, which "
                "a checkpoint cannot name; write functools.partial(CLASS, SETTING=VALUE)"
            )


def _made_by_a_parser(value: Any) -> bool:
    """Whether the command line, or the loading of a checkpoint, made a factory; its settings are kept elsewhere."""
    return isinstance(value, partial) and value.func.__module__.startswith("jsonargparse")


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
