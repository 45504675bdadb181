"""Checks paths of a command line before Lightning is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tql_lightning.cli.configs import CONFIG_FLAGS, DATASET_FLAG, FOLDER
from tql_lightning.data.named import Kind, kind_of, require_there
from tql_lightning.run.checkpoint_file import last_of, require_checkpoint_file
from tql_lightning.run.folder import CONFIG_FILE
from tql_lightning.trust.text import FileError
from tql_lightning.trust.yaml_text import read_yaml_file

DATASET = DATASET_FLAG.removeprefix("--")
READ = ("seed_everything", "ckpt_path", "weights", FOLDER, DATASET)  # settings that paths follow from
CLASS_PATH = re.compile(r"[^\W\d]\w*(\.\w+)+")
PATHS = ("name", "path")  # arguments of our loaders
LOADERS: dict[str, Kind | None] = {
    "load_dataset": None,
    "load_npz": "npz",
    "load_npy_folder": "folder",
    "load_d4rl": "d4rl",
}


class StartError(FileError):
    """A run cannot start in this folder, from this checkpoint or without a dataset."""


def check_start(command: str, arguments: Sequence[str]) -> None:
    """Refuses a start whose folder, checkpoint or dataset file cannot be right.

    What cannot be told here, such as settings with mistakes, is left to the parser.

    Args:
        command: "fit", "validate" or "test".
        arguments: Command line as `resolve_configs` returns it.

    Raises:
        StartError: The folder holds another run, or no dataset is named.
        CheckpointError: What is named as a checkpoint cannot be one.
        DatasetError: There is no such dataset.
    """
    if any(argument.startswith("--print_config") for argument in arguments):
        return  # it starts nothing
    settings = _settings(arguments)
    folder, checkpoint = _select(settings, FOLDER), _select(settings, "ckpt_path")
    writes = not any("fast_dev_run" in argument for argument in arguments)
    if command == "fit" and writes and not checkpoint and isinstance(folder, str) and any(Path(folder).rglob("*.ckpt")):
        refuse_earlier_run(Path(folder))
    elsewhere = any("dirpath" in argument for argument in arguments)
    if checkpoint == "last" and isinstance(folder, str) and not elsewhere and not Path(folder).exists():
        raise StartError(
            f"ckpt_path: there is no last checkpoint ({folder}); leave ckpt_path out to start a run, or give the file "
            "or the run's --trainer.default_root_dir"
        )
    weights = _select(settings, "weights")  # of a run that is continued, they have been loaded
    if isinstance(checkpoint, str) and checkpoint not in ("last", "best", "hpc") and "://" not in checkpoint:
        require_checkpoint_file(Path(checkpoint))
    elif isinstance(weights, str) and not checkpoint:
        require_checkpoint_file(last_of(Path(weights)))
    dataset = _select(settings, f"{DATASET}.class_path")
    whole = any(argument.split("=")[0] == "--data" for argument in arguments)  # may name it
    if dataset is None and not whole:
        raise StartError(
            f"{DATASET}: required, found none; add --{DATASET}=mine.npz, or a configuration that names one, such as "
            "--config quickstart or --config ogbench/cube-double"
        )
    if isinstance(dataset, str) and not CLASS_PATH.fullmatch(dataset) and not dataset.startswith("{"):
        kind_of(dataset)
    loader, name = _dataset(settings)
    if name is not None:
        require_there(LOADERS[loader] or kind_of(name), Path(name))


def refuse_earlier_run(folder: Path) -> None:
    """Refuses a new run in the folder of another.

    Raises:
        StartError: The folder holds one.
    """
    if (folder / CONFIG_FILE).exists():
        raise StartError(
            f"{FOLDER}: {folder} holds an earlier run; continue it with --ckpt_path=last, "
            f"choose another folder with --{FOLDER}, or remove it"
        )


def _settings(arguments: Sequence[str]) -> DictConfig:
    """The settings of `READ`, as far as they can be read."""
    settings = OmegaConf.create({})
    for name, value in _assignments(arguments):
        path = f"{DATASET}.class_path"
        given = value.get("class_path") if name == DATASET and isinstance(value, dict) else None
        if given is not None and OmegaConf.select(settings, path) != given:
            OmegaConf.update(settings, DATASET, {}, merge=False, force_add=True)
        OmegaConf.update(settings, name, value, merge=True, force_add=True)
    return settings


def _assignments(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Name and value of each setting in `READ`, in the order of the command line."""
    for before, argument in pairwise(["", *arguments]):
        flag, equals, text = argument.partition("=")
        flag, text = (flag, text) if equals else (before, argument)
        if flag in CONFIG_FLAGS:
            yield from _in_file(text)
        name = flag.removeprefix("--")
        if flag.startswith("--") and (name in READ or name.startswith(f"{DATASET}.")):
            first, _, rest = name.removeprefix(f"{DATASET}.").partition(".")
            if name == DATASET:
                yield name, {"class_path": text}
            elif name.startswith(DATASET) and first not in ("class_path", "init_args"):
                yield f"{DATASET}.init_args.{first}{'.' + rest if rest else ''}", text
            else:
                yield name, None if text == "null" else text


def _in_file(file: str) -> Iterator[tuple[str, Any]]:
    for name in READ:
        value = read_yaml_file(Path(file))
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            yield name, {"class_path": value} if name == DATASET and isinstance(value, str) else value


def _select(settings: DictConfig, name: str) -> Any:
    """A setting's value, with references resolved; None if it is not there or refers to nothing known here."""
    try:
        return OmegaConf.select(settings, name)
    except OmegaConfBaseException:
        return None


def _dataset(settings: DictConfig) -> tuple[str, str | None]:
    """Name of the function that loads the dataset, and the name or path that one of ours is given."""
    loader = str(_select(settings, f"{DATASET}.class_path") or "").rpartition(".")[2]
    names = [_select(settings, f"{DATASET}.init_args.{argument}") for argument in PATHS]
    found = next((name for name in names if isinstance(name, str)), None)
    return loader, found if loader in LOADERS else None
