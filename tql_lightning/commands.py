"""The commands beside Lightning's: what they print; what they do lies in the modules they call."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from json import dumps
from pathlib import Path

import jsonargparse

from tql_lightning.extraction import Extraction
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
    """Makes an offline dataset from a real environment with scripted behaviour.

    Args:
        environment: "cube-single", "cube-double", "cube-triple", "scene", "puzzle-3x3" or "puzzle-4x4" for an
            OGBench play dataset in its official format (with a validation file of a tenth beside it), or the id of
            any Gymnasium environment with Box actions ("Pendulum-v1").
        transitions: at least so many, in whole episodes.
        seed: of environments and behaviour.
        workers: processes that collect; no influence on the data.
        output: file to write (.npz). Default: where OGBench keeps its datasets, or for others
            $TQL_DATASETS/ENVIRONMENT.npz (datasets/ if that variable is not set).
        behaviour: import path of a function (action_space, rng) that returns a function from observation to
            action. Default: weak swing-up for Pendulum-v1, random actions elsewhere.
        overwrite: replace an existing file.
    """
    from tql_lightning.data.collect import collect

    collected = collect(environment, transitions, seed, workers, output, behaviour, overwrite)
    print(f"wrote {collected.path}: {collected.transitions:,} transitions in {collected.episodes} episodes")
    if collected.mean_return is not None and collected.best_return is not None:
        print(f"mean episode return {collected.mean_return:.1f}, best {collected.best_return:.1f}")


def evaluate(
    checkpoint: str,
    episodes: int = 50,
    seed: int = 0,
    extraction: Extraction | None = None,
    env: str | None = None,
    num_envs: int = 10,
    parallel: bool = False,
    json: str | None = None,
) -> None:
    """Plays evaluation episodes with a checkpoint's policy and prints a table.

    Args:
        checkpoint: a .ckpt file.
        episodes: how many to play.
        seed: of the episodes and their noise.
        extraction: "fql", "implicit" or "behaviour_flow"; default: the model's own.
        env: Gymnasium id of the environment; default: the one that the dataset named.
        num_envs: environments that play at once; no influence on the result.
        parallel: a process for each environment, for slow environments.
        json: file to write the figures to as well.
    """
    from tql_lightning.data.files import require_writable, write_text_whole
    from tql_lightning.evaluation import evaluate_checkpoint

    if json:
        require_writable(Path(json))
    figures = evaluate_checkpoint(checkpoint, episodes, seed, extraction, env, num_envs, parallel)
    print(f"{figures['checkpoint']} after {figures['updates']:,} updates, {figures['env_id']}, {episodes} episodes")
    print(f"{'':14}{'mean':>12}{'stderr':>12}")
    for name in ("return", "success_rate", "length"):
        if name in figures:
            print(f"{name:14}{figures[name]:12.3f}{figures[f'{name}_stderr']:12.3f}")
    if json:
        write_text_whole(Path(json), dumps(figures, indent=2) + "\n")
        print(f"wrote {json}")


def quickstart(seeds: list[int] | None = None, output: str = "runs/quickstart", parallel: int | None = None) -> None:
    """Learns to swing up a pendulum from bad data: dataset, training, evaluation, table.

    Args:
        seeds: one run each; default 0, 1 and 2.
        output: folder of the runs and of result.json; an earlier quickstart there is replaced.
        parallel: runs at once; default: two, or one on a single core.
    """
    from tql_lightning.quickstart import run_quickstart

    run_quickstart([0, 1, 2] if seeds is None else seeds, Path(output), parallel)


COMMANDS: dict[str, Callable[..., object]] = {
    "collect": collect_command,
    "evaluate": evaluate,
    "export": export,
    "quickstart": quickstart,
    "report": report,
}


def command_parser(name: str, function: Callable[..., object]) -> jsonargparse.ArgumentParser:
    """A parser of a function's arguments; their docstrings are its help."""
    summary = (function.__doc__ or "").strip().split("\n")[0]
    parser = jsonargparse.ArgumentParser(prog=f"tql {name}", description=summary, exit_on_error=False)
    lists = _positional_lists(function)
    for argument, explanation in lists.items():  # jsonargparse takes a list as one word
        parser.add_argument(argument, nargs="+", type=str, metavar=argument.upper(), help=explanation)
    parser.add_function_arguments(function, as_positional=True, skip=set(lists))
    return parser


def _positional_lists(function: Callable[..., object]) -> dict[str, str]:
    """A function's arguments that are lists of words and have to be given, with what its docstring says of them."""
    import docstring_parser

    explained = {
        each.arg_name: each.description or "" for each in docstring_parser.parse(function.__doc__ or "").params
    }
    parameters = signature(function, eval_str=True).parameters.values()
    return {
        each.name: explained[each.name]
        for each in parameters
        if each.annotation == list[str] and each.default is each.empty
    }


def flags(parser: jsonargparse.ArgumentParser) -> set[str]:
    """The options of a parser."""
    return {name for action in parser._actions for name in action.option_strings}
