"""The command ``tql``: Lightning's CLI for fit, validate and test, and commands of our own.

Only fit, validate and test import Lightning, so that the other commands start fast.
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

# OpenMP reads it when torch is imported. Threads that spin while they wait take cores from whatever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about Lightning's use of jsonargparse

from tql_lightning.cli.close_names import add_note, option_names
from tql_lightning.cli.commands import COMMANDS, GROUPS
from tql_lightning.cli.configs import files_that_set, resolve_configs
from tql_lightning.cli.errors import exit_code_of, short_message
from tql_lightning.cli.help import SUMMARIES, take_group
from tql_lightning.cli.moved import moved_paths
from tql_lightning.cli.overview import check_command, overview
from tql_lightning.cli.parser_messages import key_of
from tql_lightning.cli.parsers import command_parser
from tql_lightning.cli.start_checks import check_start
from tql_lightning.system.full_disk import drop_unwritable_output, steady_output
from tql_lightning.trust.output import plain_messages, plain_output

SILENCED_WARNINGS = (
    r"You're using the WeightAveraging callback with a model",  # sharded weights are refused
    r"Total length of `list` across ranks is zero",  # a dataset need not have a validation part
    r"`isinstance\(treespec, LeafSpec\)`",  # raised by Lightning's use of torch
    r"Detected call of `lr_scheduler.step\(\)` before",  # float16 skips its first optimizer steps
    r"Be aware that when using `ckpt_path`, callbacks used",  # callbacks only observe: a run may change them
    r".*does not have many workers",  # the sampler draws on the device
)
ADVERTISEMENT = "try installing ["


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Parses the arguments of one of our own commands, or of a command in a group, runs it, and returns its code."""
    command = COMMANDS[name]
    if isinstance(command, dict) and arguments and arguments[0] in command:
        name, command, arguments = f"{name} {arguments[0]}", command[arguments[0]], arguments[1:]
    parser = command_parser(name, command, GROUPS.get(name))
    try:
        parsed = parser.parse_args([_underscored(argument) for argument in arguments])
    except ArgumentError as error:
        add_note(error, option_names(parser), arguments)
        raise
    assert not isinstance(command, dict), "the parser refuses a group without a command"
    code = command(**parsed.as_dict())
    return code if isinstance(code, int) else 0


def _underscored(argument: str) -> str:
    """--dry-run as --dry_run."""
    flag, equals, value = argument.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    A user's mistake prints a message of a few lines and returns 2; TQL_TRACEBACK=1 raises it instead. A closed output
    pipe ends a command with the code of SIGPIPE (141), but does not end training.

    Args:
        arguments: Command line after ``tql``; None for the process's own.
    """
    for pattern in SILENCED_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: ADVERTISEMENT not in record.msg)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.path.insert(0, str(Path.cwd()))  # so that users' own modules can be imported
    try:
        if arguments == ["--version"]:
            print(", ".join(f"{name} {version(name)}" for name in ("tql-lightning", "lightning", "torch")))
            return 0
        check_command(arguments)
        if arguments[0] in ("-h", "--help"):
            print(overview())
            return 0
        if arguments[0] in COMMANDS:
            with plain_messages(), plain_output():
                code = run_command(arguments[0], arguments[1:])
            sys.stdout.flush()  # raises BrokenPipeError here if the reader has gone
            return code
        resolved, group = take_group(resolve_configs(arguments, SUMMARIES))
        sys.argv[1:] = resolved
        if not {"-h", "--help"} & {*resolved}:
            check_start(arguments[0], resolved)
        from tql_lightning.cli.lightning import TQLCLI

        with plain_messages(), steady_output():
            return exit_code_of(TQLCLI(arguments, group, COMMANDS, GROUPS).trainer)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and drop_unwritable_output():  # such as `tql data inspect NAME | head`
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
        drop_unwritable_output()  # otherwise the interpreter reports it at exit
