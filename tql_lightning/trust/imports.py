"""Which modules may be imported because a file names them: a checkpoint its classes, a dataset its environment."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TRUST = "TQL_TRUST"  # environment variable: further packages that files may have imported, separated by commas

Holds = Callable[[ast.AST], bool]


def defines(class_name: str) -> Holds:
    """Whether a statement is the class of a name."""
    return lambda statement: isinstance(statement, ast.ClassDef) and statement.name == class_name


def import_if_allowed(path: str, importable: Sequence[str], trusted: bool = False) -> Any:
    """What a dotted path names; its module is imported where it may be.

    That is a module that the process has imported already, one of ``importable`` or within it, one that ``TQL_TRUST``
    names, or a file in the working folder that defines the class.

    Args:
        path: "module.Class".
        importable: packages.
        trusted: import any module; for files that this program wrote itself.

    Raises:
        ValueError: it is not there, or may not be imported.
    """
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        if module not in sys.modules:
            if not (trusted or may_import(module, importable, defines(parts[count]))):
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
    if not can_be_imported(path):
        raise ValueError(
            f"{path} is not there; install {parts[0]}, or change to the folder in which {parts[0]}.py or {parts[0]}/ is"
        )
    raise ValueError(
        f"{path} is not there, or in a module that a file may not import; if you trust the file, set {TRUST}={parts[0]}"
    )


def can_be_imported(path: str) -> bool:
    """Whether there is a module whose code would run if what a dotted path names were imported; runs none."""
    parts = path.split(".")
    for count in range(1, len(parts)):
        try:
            found = importlib.util.find_spec(".".join(parts[:count]))
        except (ImportError, ValueError):  # below what is no package; imported without a specification, as __main__
            return parts[0] in sys.modules
        if found is None or found.origin is not None:
            return found is not None
    return False  # folders without code


def may_import(module: str, importable: Sequence[str], own: Holds) -> bool:
    """Whether a module may be imported that has not been yet.

    Args:
        module: its dotted name.
        importable: packages.
        own: Whether the statement makes a file of the working folder importable.
    """
    allowed = [*importable, *filter(None, os.environ.get(TRUST, "").replace(" ", "").split(","))]
    if any(f"{module}.".startswith(f"{each}.") for each in allowed):
        return True
    beside = Path.cwd().joinpath(*module.split("."))
    for source in (beside.with_suffix(".py"), beside / "__init__.py"):
        if source.is_file():
            try:
                body = ast.parse(source.read_bytes()).body
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                return False
            return any(map(own, body))
    return False


def registers_environments(statement: ast.AST) -> bool:
    """Whether a statement calls something called ``register``, as ``gymnasium.register(...)``."""
    called = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return any((getattr(each, "attr", None) or getattr(each, "id", None)) == "register" for each in called)
