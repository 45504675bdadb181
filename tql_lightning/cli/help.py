"""Help of fit, validate and test: what a user sets first, and the rest by group."""

from __future__ import annotations

import re
import shutil
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from tql_lightning.cli.configs import DEFAULTS, packaged_configs
from tql_lightning.cli.private_api import actions, argument_type
from tql_lightning.trust.yaml_text import read_yaml

DESCRIPTION = (
    "Transformer Q-Learning: offline reinforcement learning with a transformer critic. Without a GPU a thread runs on "
    "each core that the process may use; OMP_NUM_THREADS in the environment sets another number."
)
SUMMARIES = {
    "fit": "Trains on a dataset; continues a run with --ckpt_path=last.",
    "validate": "Computes the losses of a checkpoint on held-out transitions.",
    "test": "Computes the losses of a checkpoint on held-out transitions and plays evaluation episodes.",
}
FLAG = "--help="
GIVEN = ("model.problem",)  # by the data: nothing to set
NO_TEXT = "Path to a configuration file"  # what jsonargparse says of a group of settings
EVERYTHING = "all"
GROUPS = ("data", "model", "trainer")
FIRST = {  # title -> names of settings; a star stands for all of the model's own
    "Data": ("data.dataset", "data.batch_size", "data.n_step", "data.action_chunk", "data.storage"),
    "Model": ("model", "model.*"),
    "Run": (
        *("trainer.max_steps", "trainer.default_root_dir", "trainer.accelerator", "trainer.devices"),
        *("trainer.callbacks", "trainer.logger", "seed_everything", "ckpt_path", "force", "weights", "online.steps"),
    ),
}
WORDS = {  # where the library's own text is long or says nothing
    "data.dataset": "Name or path of a dataset, or the import path of a function that returns one (docs/data.md).",
    "data.batch_size": "Transitions in one update, over all processes together.",
    "data.n_step": "Decisions whose rewards are summed in the TD target.",
    "data.action_chunk": "Actions of one decision, taken without looking again.",
    "data.storage": "Where transitions are held: on the device that trains, in main memory, or as their size decides.",
    "trainer.max_steps": "Number of updates.",
    "trainer.default_root_dir": "Folder of the run.",
    "trainer.accelerator": "Device: cpu, gpu or auto.",
    "trainer.devices": "Number of devices.",
    "trainer.callbacks": "Callbacks; += adds one by its class name (docs/callbacks.md).",
    "trainer.logger": "Loggers (docs/loggers.md).",
    "model.critic": "Class of the critic, such as TransformerCritic, MLPCritic or your own (docs/own_critic.md).",
    "model.policy": "Class of the policy's networks.",
    "model.entropy_control": "Class that controls attention entropy (docs/algorithm.md), or null for none.",
    "model.value_loss": "Class of the value loss: SquaredError or HLGauss.",
    "model.discount": "Discount factor, gamma.",
    "model.extraction": "How the policy chooses actions.",
    "model.optimisation": "Learning rates, schedule, weight decay, clipping: --help=model.optimisation.",
    "model.execution": "Compilation by torch, CUDA graphs, precision of products: --help=model.execution.",
    "seed_everything": "Seed of weights, minibatches and noise.",
    "ckpt_path": "Checkpoint to continue or to measure: last, or a file.",
}
HEAD = {
    "--config NAME": "Packaged configuration (quickstart, own, ogbench/cube-double, size/26m, method/iql) or a file. "
    "Several may follow one another; later ones and options override earlier ones.",
    "--print_config": "Prints the resulting configuration.",
    "--help=GROUP": "Every setting of data, model or trainer, or of a part such as model.optimisation; --help=all.",
}
INDENT, WIDTH = 32, 118
SPHINX_ROLE = re.compile(r":\w+:`~?(?:\w+\.)*(\w+)`")  # in Lightning's docstrings


class CommandError(ValueError):
    """There is no such command, or what it needs is not installed."""


class HelpError(ValueError):
    """No setting belongs to the group of settings asked for."""


class WordWrapHelp(DefaultHelpFormatter):
    """Jsonargparse's formatter; wraps between words only, never inside names and addresses."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        text = SPHINX_ROLE.sub(r"\1", " ".join(text.split()))
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def summaries(commands: Mapping[str, Any], groups: Mapping[str, str]) -> dict[str, str]:
    """First line of each command's help: Lightning's, then our own by name."""
    own = {name: groups.get(name) or str(command.__doc__).strip().split("\n")[0] for name, command in commands.items()}
    return SUMMARIES | dict(sorted(own.items()))


def take_group(arguments: list[str]) -> tuple[list[str], str]:
    """A command line with ``--help=GROUP`` replaced by ``--help``, and GROUP; "" where there is none."""
    groups = [argument.removeprefix(FLAG) for argument in arguments if argument.startswith(FLAG)]
    plain = ["--help" if argument.startswith(FLAG) else argument for argument in arguments]
    return plain, groups[-1] if groups else ""


def first_help(parser: ArgumentParser, name: str) -> str:
    """The settings that users change first, in one or two screens."""
    known = {each.dest: each for each in actions(parser) if [*each.option_strings][:1] == [f"--{each.dest}"]}
    defaults = read_yaml(packaged_configs()[DEFAULTS].read_text())
    lines = [f"usage: tql {name} --config NAME [--data.dataset=NAME] [options]", ""]
    lines += [*textwrap.wrap(str(parser.description), text_width(WIDTH)), ""]
    lines += [line for option, text in HEAD.items() for line in _entry(option, text)]
    lines.append("")
    for title, names in FIRST.items():
        lines.append(f"{title}:")
        for dest in _expanded(names, known):
            lines += _setting(known[dest], _value(defaults, dest, known[dest].default))
        lines.append("")
    return "\n".join(lines)


def group_help(parser: ArgumentParser, name: str, group: str) -> str:
    """Every setting of a group, which is the beginning of their names.

    Raises:
        HelpError: No setting begins so.
    """
    inside = [
        action
        for action in actions(parser)
        if group == EVERYTHING or action.dest == group or action.dest.startswith(f"{group}.")
    ]
    if not inside:
        parts = sorted({dest.rpartition(".")[0] for action in actions(parser) if (dest := action.dest).count(".") > 1})
        raise HelpError(f"--help={group}: expected {', '.join((*GROUPS, EVERYTHING))}, or {', '.join(parts)}")
    for action in actions(parser):
        if action not in inside:
            action.help = SUPPRESS
    parser.usage = f"tql {name} [options]"
    return ArgumentParser.format_help(parser)


def _expanded(names: Collection[str], known: Collection[str]) -> Iterator[str]:
    for name in names:
        if name.endswith("*"):
            inside = (dest for dest in known if dest.startswith(name[:-1]) and dest.count(".") == name.count("."))
            yield from (dest for dest in inside if dest not in GIVEN)
        elif name in known:
            yield name


def _value(settings: Any, name: str, default: Any) -> Any:
    """What a setting is without a configuration: conf/tql.yaml's, else the class's."""
    for part in name.split("."):
        if not isinstance(settings, dict) or part not in settings:
            return default
        settings = settings[part]
    return settings


def _setting(action: Action, default: Any) -> list[str]:
    """A setting with its choices and its default."""
    text = WORDS.get(action.dest) or " ".join(str(action.help).replace("``", "").split()).split(". ")[0].rstrip(".")
    text = f"Settings of its own: --help={action.dest}" if text == NO_TEXT else text
    text = f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
    if get_origin(kind := argument_type(action)) is Literal:
        text += f" {{{', '.join(map(str, get_args(kind)))}}}"
    if isinstance(default, dict | Namespace):
        default = default.get("class_path")
    default = getattr(default, "__name__", default)
    if isinstance(default, str) and "/" not in default:
        default = default.rpartition(".")[2]  # of a class
    if isinstance(default, str | bool | int | float) and default not in ("", SUPPRESS):
        text += f" [{str(default).lower() if isinstance(default, bool) else default}]"
    return _entry(action.option_strings[0], text)


def _entry(option: str, text: str) -> list[str]:
    wrapped = textwrap.wrap(text, text_width(WIDTH) - INDENT, break_long_words=False, break_on_hyphens=False)
    head = f"  {option}"
    if len(head) >= INDENT - 1:
        wrapped.insert(0, "")
    return [f"{head:{INDENT}}{wrapped[0]}".rstrip(), *(" " * INDENT + line for line in wrapped[1:])]


def text_width(most: int) -> int:
    """Width of the help's lines: the terminal's, but at most this many characters; without a terminal, this many."""
    return max(min(shutil.get_terminal_size((most + 2, 24)).columns - 2, most), 60)
