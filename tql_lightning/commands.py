"""The commands beside Lightning's: what they print; what they do lies in the modules they call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jsonargparse

from tql_lightning.data_commands import convert_command, inspect_command
from tql_lightning.evaluate_command import evaluate
from tql_lightning.sharing_commands import export, report


def collect_command(
    environment: str,
    transitions: int = 50_000,
    seed: int = 0,
    workers: int = 2,
    output: str | None = None,
    behaviour: str | None = None,
    overwrite: bool = False,
) -> None:
    """Makes an offline dataset from a real environment with scripted behaviour; an interrupted one is continued.

    Args:
        environment: "cube-single", "cube-double", "cube-triple", "scene", "puzzle-3x3" or "puzzle-4x4" for an
            OGBench play dataset, "pointmaze-medium", "-large", "-giant" or "-teleport" for a navigate dataset, in the
            official format (with a validation file of a tenth beside it); or the id of any Gymnasium environment
            with Box actions, and observations in a Box or a Dict of them ("Pendulum-v1", "Reacher-v5").
        transitions: at least so many, in whole episodes.
        seed: of environments and behaviour.
        workers: processes that collect; no influence on the data.
        output: file to write (.npz). Default: where OGBench keeps its datasets, or for others
            $TQL_DATASETS/ENVIRONMENT.npz (datasets/ if that variable is not set).
        behaviour: import path of a function (action_space, rng) that returns a function from observation to
            action. Default: weak swing-up for Pendulum-v1, clumsy climbing for MountainCarContinuous-v0, random
            actions elsewhere.
        overwrite: replace an existing file, and episodes that an interrupted call kept with other settings.
    """
    from tql_lightning.data.collecting.collect import collect

    collected = collect(environment, transitions, seed, workers, output, behaviour, overwrite)
    print(f"wrote {collected.path}: {collected.transitions:,} transitions in {collected.episodes} episodes")
    if collected.mean_return is not None and collected.best_return is not None:
        print(f"mean episode return {collected.mean_return:.1f}, best {collected.best_return:.1f}")


def quickstart(seeds: list[int] | None = None, output: str = "runs/quickstart", parallel: int | None = None) -> None:
    """Learns to swing up a pendulum from bad data: dataset, training, evaluation, table.

    Args:
        seeds: one run each; default 0, 1 and 2.
        output: folder of the runs and of result.json; an earlier quickstart there is replaced.
        parallel: runs at once; default: two, or one on a single core.
    """
    from tql_lightning.quickstart import run_quickstart

    run_quickstart([0, 1, 2] if seeds is None else seeds, Path(output), parallel)


GROUPS = {"data": "Looks into datasets, and converts them."}
Command = Callable[..., object]
COMMANDS: dict[str, Command | dict[str, Command]] = {
    "collect": collect_command,
    "data": {"inspect": inspect_command, "convert": convert_command},
    "evaluate": evaluate,
    "export": export,
    "quickstart": quickstart,
    "report": report,
}


def command_parser(name: str, command: Command | dict[str, Command], whole: bool = True) -> jsonargparse.ArgumentParser:
    """A parser of a function's arguments, or of a group of commands; their docstrings are its help.

    Args:
        name: of the command.
        command: what it runs, or a group's commands by name.
        whole: add a group's commands; otherwise `add_group` must, once the parser has its place under another.
    """
    summary = GROUPS[name] if isinstance(command, dict) else (command.__doc__ or "").strip().split("\n")[0]
    parser = jsonargparse.ArgumentParser(prog=f"tql {name}", description=summary, exit_on_error=False)
    if not isinstance(command, dict):
        parser.add_function_arguments(command, as_positional=True)
        for group in parser._action_groups:
            if group.title == summary.rstrip("."):
                group.title = "arguments"  # the description says it already
    elif whole:
        add_group(parser, name, command)
    for action in parser._actions:
        if not action.option_strings and getattr(action, "_typehint", None) == list[str]:  # given one after the other
            action.nargs, action._typehint, action.metavar = "+", str, action.dest  # type: ignore[attr-defined]
    return parser


def add_group(parser: jsonargparse.ArgumentParser, name: str, commands: dict[str, Command]) -> None:
    """Adds a group's commands to its parser."""
    action = parser.add_subcommands(dest="command")
    for part, command in commands.items():
        below = command_parser(f"{name} {part}", command)
        action.add_subcommand(part, below, help=below.description)
