"""The command ``tql``: Lightning's CLI for fit, validate and test, and the few commands beside it.

Lightning is imported only for its own commands: the others start in a moment.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about Lightning's use of jsonargparse

from tql_lightning.cli.close_names import add_note, key_of, option_names
from tql_lightning.cli.commands import COMMANDS, GROUPS
from tql_lightning.cli.configs import files_that_set, resolve_configs
from tql_lightning.cli.errors import exit_code_of, short_message
from tql_lightning.cli.moved import moved_paths
from tql_lightning.cli.parsers import command_parser
from tql_lightning.system.full_disk import drop_unwritable_output, steady_output

NEEDLESS_ADVICE = (
    r"Using ModelCheckpoint with manual optimization",  # the state after an update is what we want
    r"Total length of `list` across ranks is zero",  # a dataset may hold nothing out
    r"`isinstance\(treespec, LeafSpec\)`",  # between Lightning and torch
    r"Detected call of `lr_scheduler.step\(\)` before",  # float16 leaves out steps at first, which count as updates
    r"Be aware that when using `ckpt_path`, callbacks used",  # callbacks observe: a run may go on with others
    r".*does not have many workers",  # the sampler draws on the device
)
ADVERTISEMENT = "try installing ["


def run_command(name: str, arguments: Sequence[str]) -> None:
    """Runs one of our own commands, or one of a group of them."""
    command = COMMANDS[name]
    if isinstance(command, dict) and arguments and arguments[0] in command:
        name, command, arguments = f"{name} {arguments[0]}", command[arguments[0]], arguments[1:]
    parser = command_parser(name, command, GROUPS.get(name))
    try:
        parsed = parser.parse_args(list(arguments))
    except ArgumentError as error:
        add_note(error, option_names(parser))
        raise
    if not isinstance(command, dict):  # a group alone has been refused, or shown its help
        command(**parsed.as_dict())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    Mistakes of the user end in a message of a few lines and exit code 2; set TQL_TRACEBACK=1 for a traceback. Output
    that nobody reads any more ends a command as SIGPIPE does (141), but never training.

    Args:
        arguments: the command line after ``tql``; None for the process's own.
    """
    for advice in NEEDLESS_ADVICE:
        warnings.filterwarnings("ignore", message=advice)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: ADVERTISEMENT not in record.msg)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.path.insert(0, str(Path.cwd()))  # users' own callbacks, critics and datasets
    try:
        if arguments == ["--version"]:
            print(", ".join(f"{name} {version(name)}" for name in ("tql-lightning", "lightning", "torch")))
            return 0
        if arguments and arguments[0] in COMMANDS:
            run_command(arguments[0], arguments[1:])
            sys.stdout.flush()  # a reader that went away is noticed here at the latest
            return 0
        from tql_lightning.cli.lightning import TQLCLI

        sys.argv[1:] = resolve_configs(arguments, TQLCLI.subcommands())
        with steady_output():
            return exit_code_of(TQLCLI(arguments).trainer)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and drop_unwritable_output():  # as of `tql data inspect NAME | head`
            return 128 + signal.SIGPIPE
        if os.environ.get("TQL_TRACEBACK"):
            raise
        key = key_of(error) if isinstance(error, ArgumentError) else None
        if key and (there := files_that_set(key, sys.argv[1:])):
            error.add_note(f"it stands in {' and '.join(there)}")
        for old, new in moved_paths(str(error)).items():
            error.add_note(f"{old} is now {new}")
        message = short_message(error)
        if message is None:
            raise
        print(message, file=sys.stderr)
        return 2
    finally:
        drop_unwritable_output()  # else the interpreter complains at its end
