"""Finds the packaged configurations by name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path

DEFAULTS = "tql"
CONFIG_FLAGS = ("-c", "--config")


class ConfigError(ValueError):
    """There is no such configuration."""


def resolve_configs(arguments: Sequence[str], with_defaults: Collection[str]) -> list[str]:
    """A command line in which every ``--config NAME`` is a file, after the file of the defaults.

    Args:
        arguments: the command line; NAME is a file, or a packaged configuration such as "ogbench/cube-double".
        with_defaults: subcommands that start from the packaged configuration "tql".

    Raises:
        ConfigError: neither; the message gives names that are close.
    """
    resolved: list[str] = []
    follows = False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if follows:
            resolved.append(find_config(argument))
        elif equals and flag in CONFIG_FLAGS:
            resolved.append(f"{flag}={find_config(value)}")
        else:
            resolved.append(argument)
        follows = argument in CONFIG_FLAGS
    if resolved and resolved[0] in with_defaults:
        resolved[1:1] = ["--config", find_config(DEFAULTS)]
    return resolved


def find_config(name: str) -> str:
    """Path of a configuration: a file of the user's, or else a packaged one by name."""
    if Path(name).is_file():
        return name
    packaged = packaged_configs()
    if name in packaged:
        return str(packaged[name])
    close = difflib.get_close_matches(name, packaged, n=3) or sorted(packaged)
    raise ConfigError(f"--config {name}: no such file, and no packaged configuration; there is: {', '.join(close)}")


def packaged_configs() -> dict[str, Path]:
    """The packaged configurations by name, e.g. "size/26m"."""
    root = Path(str(files("tql_lightning") / "conf"))
    return {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.yaml"))}
