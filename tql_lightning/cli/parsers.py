"""Parsers of our own commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jsonargparse

from tql_lightning.cli.help import WordWrapHelp
from tql_lightning.cli.private_api import actions, argument_groups, argument_type, take_many

Command = Callable[..., object]
Shell = Literal["bash", "zsh", "tcsh"]
CertifiedOutput = Literal["action", "q"]  # choices of an option of `tql certify`
ReportFormat = Literal["html", "md", "csv", "latex", "json"]
Engine = Literal["ray", "slurm", "serial"]  # of `tql benchmark`


def command_parser(
    name: str, command: Command | dict[str, Command], summary: str | None = None, whole: bool = True
) -> jsonargparse.ArgumentParser:
    """Parser of a function's arguments, or of a group of commands; docstrings become its help.

    Args:
        name: Name of the command.
        command: Function that it runs, or a group's commands by name.
        summary: One line of help for a group.
        whole: Whether to add a group's commands; if not, call `add_group` after this parser is added to another.
    """
    if summary is None:
        summary = (command.__doc__ or "").strip().split("\n")[0]
    parser = jsonargparse.ArgumentParser(
        prog=f"tql {name}", description=summary, exit_on_error=False, allow_abbrev=False, formatter_class=WordWrapHelp
    )
    if not isinstance(command, dict):
        parser.add_function_arguments(command, as_positional=True)
        for group in argument_groups(parser):
            if group.title == summary.rstrip("."):
                group.title = "arguments"  # instead of repeating the description
    elif whole:
        add_group(parser, name, command)
    for action in actions(parser):
        if not action.option_strings and argument_type(action) == list[str]:  # given one after the other
            take_many(action, str)
            action.metavar = action.dest
        for item in (str, int, float):
            if argument_type(action) == list[item] | None:  # type: ignore[valid-type]
                take_many(action, item)
        if argument_type(action) is bool:  # --flag is --flag=true
            action.nargs, action.const = "?", True
    return parser


def add_group(parser: jsonargparse.ArgumentParser, name: str, commands: dict[str, Command]) -> None:
    """Adds a group's commands to its parser."""
    action = parser.add_subcommands(dest="command")
    for part, command in commands.items():
        below = command_parser(f"{name} {part}", command)
        action.add_subcommand(part, below, help=below.description)
