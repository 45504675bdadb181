"""Which classes a checkpoint may name: parts of the expected types, in modules that it may import."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from inspect import signature
from typing import Any, get_args, get_origin, get_type_hints

from torch import nn

from tql_lightning.trust.imports import can_be_imported, import_if_allowed
from tql_lightning.trust.text import shown

IMPORTABLE = ("tql_lightning", "torch.nn")
MOST_PARTS = 1_000  # values of all settings together; a model of ours has about a hundred
MOST_IN_A_LIST = 300  # jsonargparse takes time in the square of it
LONGEST_TEXT = 1_000  # characters
DEEPEST = 30  # parts within parts

_LISTS = (list, tuple, set)
_YAML_STRUCTURE = re.compile(r"[{}\[\]]|:(\s|$)|^\s*[-?]\s")  # makes more than text of a string in YAML
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_<]\w*>?)+")


def check_class_paths(settings: Mapping[str, Any], of: type, trusted: bool = False) -> None:
    """Refuses settings that name a forbidden class or module, before any of them is used.

    A module is imported for a name only if it is one of `IMPORTABLE`, or as `import_if_allowed` says.

    Args:
        settings: Arguments of ``of`` by name, its parts as class path and arguments.
        of: Class to make from them; its annotations say which type each part must have.
        trusted: Whether any module may be imported; for files that this program wrote itself.

    Raises:
        ValueError: A name is no class, has another type, or lies in a module that may not be imported; or the settings
            contain themselves, or are too many.
    """
    _count_parts(settings)
    hints = arguments_of(of)
    for name, value in settings.items():
        expected = _made_by(hints.get(name))
        if expected is not None and value is not None:
            if not isinstance(value, Mapping) or not isinstance(value.get("class_path"), str):
                raise ValueError(f"{name}: expected a class path with its arguments, found {shown(value)}")
            _check_class(name, value["class_path"], (expected,), trusted)
        _check_parts(name, value, trusted)
        if not trusted:
            _check_strings(name, value, hints.get(name))


def arguments_of(kind: type) -> dict[str, Any]:
    """Returns the annotations of a class's constructor by argument, those behind ``**settings`` included.

    Raises:
        ValueError: An annotation names what its module does not have.
    """
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        _, *parameters = signature(base.__init__).parameters.values()  # type: ignore[misc]
        try:
            hints = get_type_hints(base.__init__)  # type: ignore[misc]
        except NameError as error:
            raise ValueError(f"{base.__name__}: its constructor's annotations cannot be read ({error})") from error
        for each in parameters:
            if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                found.setdefault(each.name, hints.get(each.name))
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return found


def _count_parts(settings: Mapping[str, Any]) -> None:
    """Refuses settings that a walk might never end in, such as a list that holds the same list many times."""
    left: list[tuple[Any, int]] = [(settings, 0)]
    for count in range(MOST_PARTS):
        if not left:
            return
        value, depth = left.pop()
        if depth > DEEPEST:
            break
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, _LISTS) else ()
        if len(inside) > MOST_PARTS - count or (isinstance(value, _LISTS) and len(value) > MOST_IN_A_LIST):
            break
        if any(
            isinstance(each, str) and len(each) > LONGEST_TEXT
            for each in (*(value if isinstance(value, Mapping) else ()), *inside)
        ):
            break
        left += [(part, depth + 1) for part in inside]
    raise ValueError(
        f"settings: expected at most {MOST_PARTS:,} values, {MOST_IN_A_LIST} in a list, {DEEPEST} deep, and text of "
        f"{LONGEST_TEXT:,} characters, found more"
    )


def _check_parts(name: str, value: Any, trusted: bool) -> None:
    """Checks every class that a setting names, at any depth.

    A dotted name without an installed module counts as text, such as the file name weights.pt.
    """
    if isinstance(value, Mapping):
        for inside, part in value.items():
            _check_parts(f"{name}.{inside}", part, trusted)
    elif isinstance(value, _LISTS):
        for part in value:
            _check_parts(name, part, trusted)
    elif isinstance(value, str) and _DOTTED.fullmatch(value) and can_be_imported(value):
        _check_class(name, value, (nn.Module,), trusted)


def _check_strings(name: str, value: Any, hint: Any) -> None:
    """Refuses a string that jsonargparse would parse as YAML, or read as a file, to make a part of it.

    Args:
        name: Name of the setting, for messages.
        value: Value of the setting.
        hint: Annotation of the parameter that takes it; None where it is unknown.
    """
    if isinstance(value, str):
        if _YAML_STRUCTURE.search(value) or not value.isprintable():
            raise ValueError(f"{name}: expected plain text, found {shown(value)}")
        if _takes_part(hint):
            raise ValueError(f"{name}: expected a class path with its arguments, found {shown(value)}")
    elif isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key.startswith("__"):  # jsonargparse keeps notes of its own under such names
                raise ValueError(f"{name}: expected settings by name, found {shown(key)}")
        if "class_path" in value and not (value.keys() <= {"class_path", "init_args"} and _is_part(value)):
            raise ValueError(f"{name}: expected class_path and init_args alone, found more, or other types")
        hints = _parameter_hints(value["class_path"]) if "class_path" in value else {}
        inside = value.get("init_args", {}) if "class_path" in value else value
        for key, part in inside.items():
            _check_strings(f"{name}.{key}", part, hints.get(key))
    elif isinstance(value, _LISTS):
        for part in value:
            _check_strings(name, part, hint)


def _is_part(value: Mapping[str, Any]) -> bool:
    return isinstance(value["class_path"], str) and isinstance(value.get("init_args", {}), Mapping)


def _parameter_hints(path: str) -> dict[str, Any]:
    """Annotations of a checked class's parameters; where they cannot be told, every one might take a part."""
    checked: Any = import_if_allowed(path, IMPORTABLE)
    try:
        return get_type_hints(checked.__init__)
    except (NameError, TypeError, AttributeError):
        return dict.fromkeys(signature(checked).parameters, nn.Module)


def _takes_part(hint: Any) -> bool:
    """Whether an annotation allows a part of a network or a factory of one."""
    if get_origin(hint) is Callable or (isinstance(hint, type) and issubclass(hint, nn.Module)):
        return True
    return any(_takes_part(option) for option in get_args(hint))


def _check_class(name: str, path: str, expected: tuple[type, ...], trusted: bool) -> None:
    try:
        found = import_if_allowed(path, IMPORTABLE, trusted)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    fits = isinstance(found, type) and (issubclass(found, expected) or (expected == (nn.Module,) and _is_data(found)))
    if not fits:
        raise ValueError(f"{name}: expected a subclass of {expected[0].__name__}, found {path}")


def _is_data(found: type) -> bool:
    return is_dataclass(found)


def _made_by(hint: Any) -> type | None:
    """What a factory makes, by its annotation; None where it is none."""
    for option in (hint, *get_args(hint)):
        if get_origin(option) is Callable:
            made = get_args(option)[1]
            return made if isinstance(made, type) else None
    return None
