"""Finds packaged configurations by name, checks configurations, and makes a run's own independent of its folder."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from tql_lightning.cli.naming import default_folder
from tql_lightning.data.named import is_dataset_name, kind_of
from tql_lightning.data.sources.ogbench import load_ogbench, split_name
from tql_lightning.run.folder import CONFIG_FILE
from tql_lightning.trust.text import FileError
from tql_lightning.trust.yaml_text import read_yaml_file

DEFAULTS = "tql"
SUITES = "suite/"
CONFIG_FLAGS = ("-c", "--config")
DATASET_FLAG = "--data.dataset"
FOLDER = "trainer.default_root_dir"
WRITTEN_TO = frozenset({"dirpath", "save_dir"})  # settings of callbacks and loggers


class ConfigError(FileError):
    """A configuration does not exist, cannot be read, or sets what may not be set there."""


def resolve_configs(arguments: Sequence[str], with_defaults: Collection[str]) -> list[str]:
    """Replaces names of configurations and datasets on a command line, and puts the default configuration first.

    ``--config NAME`` becomes the path of a file. ``--data.dataset=NAME`` with a dataset's name
    (`tql_lightning.data.named.kind_of`) becomes `load_dataset` with that name; an OGBench name becomes OGBench's own
    loader, because configurations refer to its ``task``.

    A method's configuration, such as "method/iql", brings along what its paper sets for the problem that the command
    line names: with "ogbench/cube-double" also "method/iql/cube-double", where there is one.

    The run's folder is named by what the command line varies (`cli.naming`), unless a configuration or an option says
    otherwise.

    Args:
        arguments: Command line; NAME is a file, or a packaged configuration such as "ogbench/cube-double".
        with_defaults: Subcommands that start from the packaged configuration "tql".

    Raises:
        ConfigError: NAME is neither; the message gives close names.
    """
    resolved: list[str] = []
    follows = False
    problems = _problems(arguments)
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if equals and flag == DATASET_FLAG and is_dataset_name(value):
            resolved += _by_name(value)
        elif index and arguments[index - 1] == DATASET_FLAG and is_dataset_name(argument):
            resolved[-1:] = _by_name(argument)
        elif follows:
            resolved += [find_config(argument), *_of_problems(argument, problems)]
        elif equals and flag in CONFIG_FLAGS:
            resolved += [f"{flag}={find_config(value)}", *_of_problems(value, problems)]
        else:
            resolved.append(_readable(argument, arguments[index - 1] if index else ""))
        follows = argument in CONFIG_FLAGS
    if resolved and resolved[0] in with_defaults:
        folder = f"--{FOLDER}={default_folder(arguments[1:])}"  # before the user's configurations, which may change it
        resolved[1:1] = ["--config", find_config(DEFAULTS), folder]
    return resolved


def _readable(argument: str, before: str) -> str:
    """An argument; "./" comes before a path that starts like a comment of YAML, which the parser would read as null."""
    flag, equals, value = argument.partition("=")
    if equals and flag.startswith("--") and value.startswith("#"):
        return f"{flag}=./{value}"
    follows = before.startswith("--") and "=" not in before
    return f"./{argument}" if follows and argument.startswith("#") else argument


def _problems(arguments: Sequence[str]) -> list[str]:
    """What a command line trains on, as configurations call it: "cube-double", "quickstart"."""
    found = []
    for before, argument in pairwise(["", *arguments]):
        flag, equals, value = argument.partition("=")
        flag, value = (flag, value) if equals else (before, argument)
        if flag in CONFIG_FLAGS:
            found.append(value.rpartition("/")[2])
        elif flag == DATASET_FLAG and is_dataset_name(value) and kind_of(value) == "ogbench":
            found.append(split_name(value)[0].rpartition("-")[0])  # without "play" or "navigate"
    return found


def _of_problems(name: str, problems: Sequence[str]) -> list[str]:
    """The options for a method's configurations of these problems; none for a name that is no method's."""
    packaged = packaged_configs()
    paths = [packaged.get(f"{name}/{problem}") for problem in problems if name.startswith("method/")]
    return [f"--config={path}" for path in paths if path is not None]


def refer_to_folder(settings: Any, folder: str | None) -> Any:
    """Settings in which callbacks and loggers that write into the run's folder refer to it, so that it can be moved.

    Args:
        settings: Resolved settings, or a part of them.
        folder: Value of ``trainer.default_root_dir``.
    """
    if isinstance(settings, list):
        return [refer_to_folder(each, folder) for each in settings]
    if not isinstance(settings, dict) or not folder:
        return settings
    changed = {name: refer_to_folder(value, folder) for name, value in settings.items()}
    for name in WRITTEN_TO & changed.keys():
        value = changed[name]
        if isinstance(value, str) and (value == folder or value.startswith(f"{folder}/")):
            changed[name] = f"${{{FOLDER}}}{value.removeprefix(folder)}"
    return changed


def _by_name(name: str) -> list[str]:
    if kind_of(name) != "ogbench":
        return [f"{DATASET_FLAG}=tql_lightning.load_dataset", f"{DATASET_FLAG}.name={name}"]
    domain, task = split_name(name)
    loader = f"{DATASET_FLAG}={load_ogbench.__module__}.{load_ogbench.__name__}"
    if task is None:  # the default task follows from the whole name
        return [loader, f"{DATASET_FLAG}.domain={name}", f"{DATASET_FLAG}.task=null"]
    return [loader, f"{DATASET_FLAG}.domain={domain}", f"{DATASET_FLAG}.task={task}"]


def find_config(name: str) -> str:
    """Path of a configuration: a user's file, otherwise a packaged configuration by name.

    Raises:
        ConfigError: It is neither, or the file does not hold settings as YAML.
    """
    if Path(name).is_file():
        try:
            _check_settings(read_yaml_file(Path(name)))
        except (ValueError, OSError, yaml.YAMLError) as error:
            raise ConfigError(f"--config {name}: {str(error).replace('<unicode string>', name)}") from error
        return name
    packaged = packaged_configs()
    if name in packaged:
        return str(packaged[name])
    if (Path(name) / CONFIG_FILE).is_file():
        raise ConfigError(f"--config {name}: expected a file, found a folder; give {Path(name) / CONFIG_FILE}")
    close = difflib.get_close_matches(name, packaged, n=3)
    meant = f"did you mean {' or '.join(close)}?" if close else f"there is: {', '.join(sorted(packaged))}"
    raise ConfigError(f"--config {name}: no such file, and no packaged configuration; {meant}")


def _check_settings(settings: Any) -> None:
    """Rejects files whose errors the parser would report without the file's name.

    Raises:
        ValueError: The settings are no mapping, or ``data.dataset`` is a name instead of a class path.
    """
    if not isinstance(settings, dict):
        found = "nothing" if settings is None else f"a {type(settings).__name__}"
        raise ValueError(f"expected settings such as trainer:, model: and data:, found {found}; write them")
    data = settings.get("data")
    name = data.get("dataset") if isinstance(data, dict) else None
    if isinstance(name, str) and is_dataset_name(name):
        raise ValueError(
            f"data.dataset: expected class_path and init_args, found a name, which is for {DATASET_FLAG}=; write "
            f"dataset: {{class_path: tql_lightning.load_dataset, init_args: {{name: {name!r}}}}}"
        )


def holds(settings: Any, key: str) -> bool:
    """Whether nested settings contain a key such as "data.discount", even with the value null."""
    for part in key.split("."):
        if not isinstance(settings, dict) or part not in settings:
            return False
        settings = settings[part]
    return True


def files_that_set(key: str, arguments: Sequence[str]) -> list[str]:
    """The user's configurations that contain a setting; none if an option on the command line sets it.

    Args:
        key: Name of the setting, such as "trainer.max_steps".
        arguments: Command line as `resolve_configs` returns it.
    """
    if any(argument.startswith(f"--{key}") for argument in arguments):
        return []
    own = {*config_files(arguments)} - {str(path) for path in packaged_configs().values()}
    return [name for name in sorted(own) if holds(read_yaml_file(Path(name)), key)]


def config_files(arguments: Sequence[str]) -> list[str]:
    """Paths of the configurations on a command line, in order."""
    files: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        flag, equals, value = argument.partition("=")
        if before in CONFIG_FLAGS:
            files.append(argument)
        elif equals and flag in CONFIG_FLAGS:
            files.append(value)
    return files


def packaged_configs() -> dict[str, Path]:
    """The packaged configurations by name, e.g. "size/26m"."""
    return {name: path for name, path in _packaged().items() if not name.startswith(SUITES)}


def packaged_suites() -> dict[str, Path]:
    """The packaged suites of ``tql benchmark`` by name, e.g. "laptop"."""
    return {name.removeprefix(SUITES): path for name, path in _packaged().items() if name.startswith(SUITES)}


def _packaged() -> dict[str, Path]:
    root = Path(str(files("tql_lightning") / "conf"))
    return {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.yaml"))}
