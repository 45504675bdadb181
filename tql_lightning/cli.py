"""The command ``tql``: Lightning's CLI for fit, validate and test, and the few commands beside it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about Lightning's use of jsonargparse

import jsonargparse
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from tql_lightning.commands import collect_command, evaluate, quickstart
from tql_lightning.configs import resolve_configs
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.errors import exit_code_of, short_message
from tql_lightning.tql import TQL

COMMANDS: dict[str, Callable[..., object]] = {
    "collect": collect_command,
    "evaluate": evaluate,
    "quickstart": quickstart,
}
NEEDLESS_ADVICE = (
    r"Using ModelCheckpoint with manual optimization",  # the state after an update is what we want
    r"Total length of `list` across ranks is zero",  # a dataset may hold nothing out
    r"`isinstance\(treespec, LeafSpec\)`",  # between Lightning and torch
    r".*does not have many workers",  # the sampler draws on the device
)
CONFIG_FILE = "config.yaml"


class TQLCLI(LightningCLI):
    """Lightning's CLI with TQL, its data and its defaults; see `main`."""

    def __init__(self) -> None:
        # A whole configuration may refer to other parts of itself, also after overrides.
        jsonargparse.set_parsing_settings(
            omegaconf_absolute_to_relative_paths=True, subclasses_enabled=[TransitionDataset]
        )
        parser = {"parser_mode": "omegaconf+", "exit_on_error": False}
        super().__init__(
            TQL,
            OfflineDataModule,
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"overwrite": True, "config_filename": CONFIG_FILE},
            parser_kwargs={**parser, **{name: dict(parser) for name in self.subcommands()}},
            auto_configure_optimizers=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands that make sense here, with the arguments to leave out of each."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Lists our own commands in the help beside Lightning's; `main` runs them."""
        super()._add_subcommands(parser, **kwargs)
        (action,) = (action for action in parser._actions if hasattr(action, "add_subcommand"))
        for name, function in COMMANDS.items():
            command = command_parser(name, function)
            action.add_subcommand(name, command, help=command.description)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The model's sizes are the dataset's."""
        for size in ("observation_dim", "action_dim"):
            parser.link_arguments(f"data.{size}", f"model.{size}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Keeps fit's own settings when it continues a run; Lightning would put the checkpoint's over them."""
        if self.config["subcommand"] != "fit":
            super()._parse_ckpt_path()

    def before_fit(self) -> None:
        """Refuses to train into a folder that holds another run.

        Raises:
            ValueError: the folder has a configuration, and no checkpoint to continue from is named.
        """
        folder = Path(self.trainer.default_root_dir)
        if (folder / CONFIG_FILE).exists() and not self._get(self.config, "ckpt_path"):
            raise ValueError(
                f"trainer.default_root_dir: {folder} holds an earlier run; continue it with --ckpt_path=last, "
                "choose another folder with --trainer.default_root_dir, or remove it"
            )


class SaveFitConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run's folder, when fitting only."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lightning's, for the stage that a run is made by."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


def command_parser(name: str, function: Callable[..., object]) -> jsonargparse.ArgumentParser:
    """A parser of a function's arguments; their docstrings are its help."""
    summary = (function.__doc__ or "").strip().split("\n")[0]
    parser = jsonargparse.ArgumentParser(prog=f"tql {name}", description=summary, exit_on_error=False)
    parser.add_function_arguments(function, as_positional=True)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    Mistakes of the user end in a message of a few lines and exit code 2; set TQL_TRACEBACK=1 for a traceback.

    Args:
        arguments: the command line after ``tql``; None for the process's own.
    """
    for advice in NEEDLESS_ADVICE:
        warnings.filterwarnings("ignore", message=advice)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.path.insert(0, str(Path.cwd()))  # users' own callbacks, critics and datasets
    try:
        if arguments and arguments[0] in COMMANDS:
            function = COMMANDS[arguments[0]]
            parsed = command_parser(arguments[0], function).parse_args(arguments[1:])
            function(**parsed.as_dict())
            return 0
        sys.argv[1:] = resolve_configs(arguments, TQLCLI.subcommands())
        return exit_code_of(TQLCLI().trainer)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("TQL_TRACEBACK"):
            raise
        message = short_message(error)
        if message is None:
            raise
        print(message, file=sys.stderr)
        return 2
