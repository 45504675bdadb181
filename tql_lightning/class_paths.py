"""Which classes a checkpoint may name: parts of the expected types, in modules that it may import."""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from torch import nn

TRUST = "TQL_TRUST"  # environment variable: further packages that checkpoints may import, separated by commas
IMPORTABLE = ("tql_lightning", "torch.nn")

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_<]\w*>?)+")


def check_class_paths(settings: Mapping[str, Any], of: type, trusted: bool = False) -> None:
    """Refuses settings that name what they may not, before anything is made of them.

    A module is imported for a name only if it is one of `IMPORTABLE`, named by ``TQL_TRUST``, or a file in the
    working folder that defines the class; what the process has imported already may be named as well.

    Args:
        settings: arguments of ``of`` by name, its parts as class path and arguments.
        of: the class to be made from them; its annotations say which type each part must be of.
        trusted: import any module; for files that this program wrote itself.

    Raises:
        ValueError: a name is no class, not of its type, or in a module that may not be imported.
    """
    hints = get_type_hints(of.__init__)  # type: ignore[misc]
    for name, value in settings.items():
        expected = _made_by(hints.get(name))
        if expected is not None and value is not None:
            if not isinstance(value, Mapping) or not isinstance(value.get("class_path"), str):
                raise ValueError(f"{name}: expected a class path with its arguments, found {value!r:.80}")
            _check_class(name, value["class_path"], (expected,), trusted)
        _check_parts(name, value, trusted)


def _check_parts(name: str, value: Any, trusted: bool) -> None:
    """Every class that a setting names, however deep: of a network's part, or of plain data."""
    if isinstance(value, Mapping):
        for inside, part in value.items():
            _check_parts(f"{name}.{inside}", part, trusted)
    elif isinstance(value, list | tuple | set):
        for part in value:
            _check_parts(name, part, trusted)
    elif isinstance(value, str) and _DOTTED.fullmatch(value):
        _check_class(name, value, (nn.Module,), trusted)


def _check_class(name: str, path: str, expected: tuple[type, ...], trusted: bool) -> None:
    found = _resolve(name, path, trusted)
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


def _resolve(name: str, path: str, trusted: bool) -> Any:
    """What a dotted path names; its module is imported where it may be."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        if module not in sys.modules:
            if not (trusted or _may_import(module, parts[count])):
                continue
            try:
                importlib.import_module(module)
            except ImportError:
                continue
        found: Any = sys.modules[module]
        for part in parts[count:]:
            found = getattr(found, part, None)
        if found is not None:
            return found
    raise ValueError(
        f"{name}: {path} is not there, or in a module that a checkpoint may not import; if you trust the file, set "
        f"{TRUST}={parts[0]}"
    )


def _may_import(module: str, class_name: str) -> bool:
    allowed = [*IMPORTABLE, *filter(None, os.environ.get(TRUST, "").split(","))]
    if any(f"{module}.".startswith(f"{each}.") for each in allowed):
        return True
    own = Path.cwd().joinpath(*module.split("."))
    for source in (own.with_suffix(".py"), own / "__init__.py"):
        if source.is_file():
            try:
                body = ast.parse(source.read_bytes()).body
            except (SyntaxError, ValueError):
                return False
            return any(isinstance(statement, ast.ClassDef) and statement.name == class_name for statement in body)
    return False
