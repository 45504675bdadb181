"""Which model a command trains: TQL, or the class that ``--model`` or a configuration names."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from omegaconf import OmegaConf

from tql_lightning.algorithms.tql import TQL
from tql_lightning.cli.configs import DEFAULTS, ConfigError, config_files, holds, packaged_configs
from tql_lightning.cli.help import WordWrapHelp, first_help, group_help
from tql_lightning.cli.moved import moved_paths
from tql_lightning.cli.private_api import actions
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.hyperparameters import class_path
from tql_lightning.training.problem import Problem
from tql_lightning.trust.class_paths import check_class_paths
from tql_lightning.trust.yaml_text import read_yaml, read_yaml_file

FLAG = "--model"
CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
FROM_DATASET = ("action_dim", "action_range", "observation_dim", "problem.final_reward_range", "problem.reward_range")
OF_PROBLEM = frozenset(field.name for field in fields(Problem))
FOR_FIT = frozenset({"online", "weights", "weights_optimizer", "weights_parts"})  # a run's configuration has them, too


class ModelError(ValueError):
    """The class of the model cannot be imported, or is none that can be trained."""


def chosen_model(arguments: Sequence[str]) -> type[Algorithm]:
    """The model's class: that of the last ``--model=CLASS``, else of the last configuration that names one, else TQL.

    Args:
        arguments: Command line, with configurations as files.

    Raises:
        ModelError: The class cannot be imported, or is no algorithm.
    """
    named = [value for _, value in _class_flags(arguments)]
    if named:
        return import_model(named[-1], FLAG)
    for file in reversed(config_files(arguments)):
        path = _class_path(read_yaml_file(Path(file)))
        if path is not None:
            return import_model(path, f"{file}: model.class_path")
    return TQL


def without_model(arguments: Sequence[str]) -> list[str]:
    """A command line without the flags that name the model's class, which the parser is built from."""
    flags = [index for indices, _ in _class_flags(arguments) for index in indices]
    return [argument for index, argument in enumerate(arguments) if index not in flags]


def import_model(path: str, place: str) -> type[Algorithm]:
    """The class that a path names; a name without a module is one of the package's own.

    Args:
        path: Import path, such as "my_module.MyAlgorithm".
        place: Where it stands, for messages.

    Raises:
        ModelError: The module or the class is missing, or the class is no algorithm.
    """
    name, _, attribute = path.rpartition(".")
    name = name or "tql_lightning"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that the user's own imports
        remedy = "" if path in moved_paths(path) else f"; run tql in the folder that holds {name.replace('.', '/')}.py"
        raise ModelError(
            f"{place}: expected the import path of an algorithm, found {path}, but there is no module "
            f"{error.name}{remedy}"
        ) from error
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        what = "nothing of that name" if found is None else "something else"
        close = difflib.get_close_matches(attribute, list(_algorithms(module)), n=2, cutoff=0.5)
        remedy = f"did you mean {' or '.join(f'{name}.{each}' for each in close)}?" if close else "define it there"
        raise ModelError(f"{place}: expected a subclass of Algorithm at {path}, found {what}; {remedy}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ModelError(f"{place}: {path} lacks what every algorithm defines; add {missing}")
    if flat := sorted(OF_PROBLEM & inspect.signature(found).parameters.keys()):
        raise ModelError(
            f"{place}: expected {path} to take problem: Problem (tql_lightning.training.problem) and to hand it to "
            f"Algorithm, found {', '.join(flat)}, now a part of it; see docs/own_algorithm.md"
        )
    return found


class ModelParser(LightningArgumentParser):
    """Parses settings of one model class, which configurations may name by class path.

    A configuration gives the model's settings flat, or as class_path and init_args. Of a configuration that was
    written for another class, only settings that this class has too are taken. Packaged ones are written for TQL.
    """

    model: type = TQL
    shown = ("", "")  # command and group of settings that the help is about
    model_settings: frozenset[str] = frozenset()  # names
    _file = ""

    def use_model(self, model: type) -> None:
        """Sets the class whose arguments have been added, and links those that follow from the data."""
        self.model = model
        self.model_settings = frozenset(
            action.dest.split(".")[1] for action in actions(self) if action.dest.startswith("model.")
        )
        for name in FROM_DATASET:
            if name.partition(".")[0] in self.model_settings:
                self.link_arguments(f"data.{name.rpartition('.')[2]}", f"model.{name}", apply_on="instantiate")
        if "problem" in self.model_settings:
            self.link_arguments("data.action_chunk", "model.problem.action_chunk")
        if "discount" in self.model_settings:
            self.link_arguments("model.discount", "data.discount")
        (action,) = (action for action in actions(self) if action.dest == "model")
        action.metavar = "CLASS"
        action.help = f"Import path of the algorithm, such as my_module.MyAlgorithm; now {class_path(model)}."

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, formatter_class=WordWrapHelp, **settings)

    def format_help(self, *arguments: Any) -> str:
        """The help of a command's settings: those that users change first, or of a group."""
        command, group = self.shown
        if not command:
            return str(super().format_help(*arguments))
        return group_help(self, command, group) if group else first_help(self, command)

    def parse_path(self, path: Any, *arguments: Any, **settings: Any) -> Any:
        """Lightning's; remembers which file is read."""
        self._file = str(path)
        return super().parse_path(path, *arguments, **settings)

    def parse_string(self, content: str, *arguments: Any, **settings: Any) -> Any:
        """Lightning's, once the model's settings are flat and this class's, and those of fit are left to fit.

        Raises:
            ConfigError: A setting follows from another one, or stands beside class_path.
        """
        read = read_yaml(content)
        if isinstance(read, dict):
            content = self._own_settings(content, read)
            of_fit = FOR_FIT & read.keys() - {action.dest for action in actions(self)}
            if of_fit:
                kept = dict(OmegaConf.create(content).items_ex(resolve=False))
                content = OmegaConf.to_yaml({key: value for key, value in kept.items() if key not in of_fit})
        return super().parse_string(content, *arguments, **settings)

    def dump(self, *arguments: Any, **settings: Any) -> str:
        """Lightning's; names the model's class unless it is TQL, so that the configuration starts the same run."""
        text: str = super().dump(*arguments, **settings)
        if self.model is TQL:
            return text
        content = yaml.safe_load(text)
        content["model"] = {"class_path": class_path(self.model), "init_args": content["model"]}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def _own_settings(self, content: str, read: dict[str, Any]) -> str:
        given, path = read.get("model"), _class_path(read)
        if path is not None and isinstance(given, dict) and given.keys() - {"class_path", "init_args"}:
            raise ConfigError(f"--config {self._file}: model: beside class_path stands init_args alone")
        # OmegaConf reads numbers such as 3e-4 and leaves references as they are.
        settings: Any = OmegaConf.to_container(OmegaConf.create(content.replace("${model.init_args.", "${model.")))
        flat = settings.get("model")
        if path is not None:
            flat = flat.get("init_args") or {} if isinstance(flat, dict) else {}
        self._refuse_linked(settings | {"model": flat})
        packaged = self._file in map(str, packaged_configs().values())
        if not isinstance(flat, dict) or (path is None and (self.model is TQL or not packaged)):
            return content
        written_for = TQL if path is None else import_model(path, f"{self._file}: model.class_path")
        foreign = sorted(
            name for name in _settings_of(written_for) & flat.keys() if not self._takes(name, flat[name], written_for)
        )
        if foreign and self._file != str(packaged_configs()[DEFAULTS]):
            tell = rank_zero_info if packaged else rank_zero_warn  # of a packaged one, nothing is the user's mistake
            tell(
                f"--config {self._file}: left out {', '.join(f'model.{name}' for name in foreign)}: settings of "
                f"{written_for.__name__} that {self.model.__name__} does not take"
            )
        flat = {name: value for name, value in flat.items() if name not in foreign}
        return yaml.safe_dump(settings | {"model": flat}, sort_keys=False)

    def _takes(self, name: str, value: Any, written_for: type) -> bool:
        """Whether this class has a setting of another class, and takes its part where it is one."""
        if name not in self.model_settings:
            return False
        if self.model is written_for:
            return True  # what is wrong with it, the parser tells better
        try:
            check_class_paths({name: value}, self.model)
        except ValueError:
            return False
        return True

    def _refuse_linked(self, settings: dict[str, Any]) -> None:
        names = {each for name in FROM_DATASET for each in (name, name.rpartition(".")[2])}  # of earlier versions, too
        keys = {f"model.{name}": "leave it out, the dataset has it" for name in sorted(names)}
        keys |= dict.fromkeys(("model.action_chunk", "model.problem.action_chunk"), "set data.action_chunk")
        if "discount" in self.model_settings:
            keys["data.discount"] = "set model.discount"
        for key, remedy in keys.items():
            if holds(settings, key):
                raise ConfigError(
                    f"--config {self._file}: {key}: expected nothing, as it follows from another setting; {remedy}"
                )


def _class_flags(arguments: Sequence[str]) -> Iterator[tuple[tuple[int, ...], str]]:
    """Places and values of ``--model=CLASS`` and ``--model CLASS``; a file's name is a file of settings, no class."""
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag != FLAG:
            continue
        if not equals:
            value = arguments[index + 1] if index + 1 < len(arguments) else ""
        if CLASS_PATH.fullmatch(value) and not Path(value).is_file():
            yield ((index,) if equals else (index, index + 1)), value


def _class_path(settings: Any) -> str | None:
    """The class that a configuration's model is of, as far as it names one."""
    model = settings.get("model") if isinstance(settings, dict) else None
    path = model.get("class_path") if isinstance(model, dict) else model
    return path if isinstance(path, str) else None


def _settings_of(model: type) -> set[str]:
    """Names of the settings that a class takes, those of its base classes included where it passes them on."""
    added = ArgumentParser(exit_on_error=False).add_class_arguments(model, "model", fail_untyped=False)
    return {name.split(".")[1] for name in added}


def _algorithms(module: ModuleType) -> Iterator[str]:
    for name in dir(module):
        found = getattr(module, name)
        if isinstance(found, type) and issubclass(found, Algorithm):
            yield name
