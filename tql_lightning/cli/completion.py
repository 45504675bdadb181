"""Scripts that complete commands, options and packaged configurations in a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, NoReturn

from tql_lightning.cli.close_names import LINK_OR_HELP, option_names
from tql_lightning.cli.configs import packaged_configs
from tql_lightning.cli.help import CommandError, summaries
from tql_lightning.cli.lightning import TQLCLI
from tql_lightning.cli.parsers import Command, Shell, command_parser
from tql_lightning.cli.private_api import actions


class _Built(Exception):  # noqa: N818  (no error: it carries the parsers out of Lightning's constructor)
    """The parsers by command."""


class _OnlyParsers(TQLCLI):
    def parse_arguments(self, parser: Any, args: Any) -> NoReturn:  # noqa: ARG002
        raise _Built(self._subcommand_parsers)


def completion_script(shell: Shell, own: Mapping[str, Command | dict[str, Command]], groups: Mapping[str, str]) -> str:
    """A script for a shell.

    Args:
        shell: Name of the shell.
        own: Our own commands.
        groups: A line of help for each group among them.

    Raises:
        CommandError: The package shtab, which writes it, is not installed.
    """
    if find_spec("shtab") is None:
        raise CommandError("completion needs shtab; pip install 'tql-lightning[completion]'")
    import shtab

    parser = argparse.ArgumentParser("tql")
    commands, about = parser.add_subparsers(), summaries(own, groups)
    for name, below in _trained_parsers().items():
        _add_options(commands.add_parser(name, help=about[name]), below)
    for name, command in own.items():
        made = commands.add_parser(name, help=about[name])
        if not isinstance(command, dict):
            _add_options(made, command_parser(name, command, groups.get(name)))
            continue
        inside = made.add_subparsers()
        for part, each in command.items():
            _add_options(inside.add_parser(part, help=part), command_parser(f"{name} {part}", each))
    script: str = shtab.complete(parser, shell)
    return script


def _trained_parsers() -> dict[str, Any]:
    before, sys.argv[1:] = sys.argv[1:], ["fit"]  # Lightning's constructor reads it
    try:
        _OnlyParsers()
    except _Built as built:
        parsers: dict[str, Any] = built.args[0]
        return parsers
    finally:
        sys.argv[1:] = before
    raise AssertionError("Lightning's constructor parses no arguments")


def _add_options(made: argparse.ArgumentParser, parser: Any) -> None:
    """Adds a command's options to a plain parser, with their choices; values of others are completed as files."""
    import shtab

    choices = {option: action.choices for action in actions(parser) for option in action.option_strings}
    for option in option_names(parser):
        if option.startswith("--") and not LINK_OR_HELP.search(option):
            known = [*packaged_configs()] if option == "--config" else choices.get(option)
            added: Any = made.add_argument(option, choices=known)
            if known is None:
                added.complete = shtab.FILE
    if not any(action.option_strings for action in actions(parser)[1:2]):
        files: Any = made.add_argument("files", nargs="*")
        files.complete = shtab.FILE
