"""Finds the packaged configurations by name; what a run's own says of its folder."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path

from tql_lightning.data.named import kind_of
from tql_lightning.data.sources.ogbench import load_ogbench, split_name
from tql_lightning.data.transitions import DatasetError
from tql_lightning.yaml_text import check_yaml

DEFAULTS = "tql"
CONFIG_FLAGS = ("-c", "--config")
DATASET_FLAG = "--data.dataset"
FOLDER = "trainer.default_root_dir"
_WRITTEN_TO = re.compile(r"^([ -]*(?:dirpath|save_dir): )(.+)$", re.MULTILINE)  # settings of callbacks and loggers


class ConfigError(ValueError):
    """There is no such configuration, or it cannot be read."""


def resolve_configs(arguments: Sequence[str], with_defaults: Collection[str]) -> list[str]:
    """A command line in which every ``--config NAME`` is a file, after the file of the defaults.

    A dataset's name (`tql_lightning.data.named.kind_of`) may stand in ``--data.dataset=NAME`` for a class path; it
    becomes `load_dataset` with that name, or for OGBench's its own loader, whose task configurations refer to.

    Args:
        arguments: the command line; NAME is a file, or a packaged configuration such as "ogbench/cube-double".
        with_defaults: subcommands that start from the packaged configuration "tql".

    Raises:
        ConfigError: neither; the message gives names that are close.
    """
    resolved: list[str] = []
    follows = False
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if equals and flag == DATASET_FLAG and _is_dataset(value):
            resolved += _by_name(value)
        elif index and arguments[index - 1] == DATASET_FLAG and _is_dataset(argument):
            resolved[-1:] = _by_name(argument)
        elif follows:
            resolved.append(find_config(argument))
        elif equals and flag in CONFIG_FLAGS:
            resolved.append(f"{flag}={find_config(value)}")
        else:
            resolved.append(argument)
        follows = argument in CONFIG_FLAGS
    if resolved and resolved[0] in with_defaults:
        resolved[1:1] = ["--config", find_config(DEFAULTS)]
    return resolved


def refer_to_folder(text: str, folder: str | None) -> str:
    """A run's configuration whose callbacks and loggers write into its folder wherever that is said to lie.

    Args:
        text: of the configuration, with every reference resolved.
        folder: what it says of ``trainer.default_root_dir``.
    """

    def refer(line: re.Match[str]) -> str:
        written_to = line[2].strip("'\"")
        below = written_to.removeprefix(str(folder))
        if below == written_to or below[:1] not in ("", "/") or set(below) & set("'\"\\"):
            return line[0]
        return f'{line[1]}"${{{FOLDER}}}{below}"'

    return _WRITTEN_TO.sub(refer, text) if folder else text


def _is_dataset(value: str) -> bool:
    try:
        kind_of(value)
    except (DatasetError, OSError):  # no dataset; or too long for a path, as a class path with its arguments may be
        return False
    return True


def _by_name(name: str) -> list[str]:
    if kind_of(name) != "ogbench":
        return [f"{DATASET_FLAG}=tql_lightning.load_dataset", f"{DATASET_FLAG}.name={name}"]
    domain, task = split_name(name)
    loader = f"{DATASET_FLAG}={load_ogbench.__module__}.{load_ogbench.__name__}"
    if task is None:  # OGBench's default task, which only the whole name tells
        return [loader, f"{DATASET_FLAG}.domain={name}", f"{DATASET_FLAG}.task=null"]
    return [loader, f"{DATASET_FLAG}.domain={domain}", f"{DATASET_FLAG}.task={task}"]


def find_config(name: str) -> str:
    """Path of a configuration: a file of the user's, or else a packaged one by name.

    Raises:
        ConfigError: neither, or its YAML does not end.
    """
    if Path(name).is_file():
        try:
            check_yaml(Path(name).read_text())
        except (ValueError, OSError) as error:
            raise ConfigError(f"--config {name}: {error}") from error
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
