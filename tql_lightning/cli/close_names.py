"""Suggests names close to an unknown option, key, argument or class ("did you mean")."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args

from tql_lightning.cli.configs import packaged_configs
from tql_lightning.cli.parser_messages import is_unknown_key, key_of, no_dataset, unknown_argument, unrecognized
from tql_lightning.cli.private_api import actions, argument_type

RELEASE_NAMES = {  # of the authors' release, and what they are here
    "seed": "--seed_everything",
    "alpha": "--model.bc_coefficient",
    "lr": "--model.optimisation.learning_rate",
    "critic_lr": "--model.optimisation.learning_rate",
    "actor_lr": "--model.optimisation.learning_rates",
    "adamw_weight_decay": "--model.optimisation.weight_decay",
    "train_steps": "--trainer.max_steps",
    "warmup_steps": "--model.optimisation.warmup_updates",
    "q_agg": "--model.target_aggregation",
    "critic_grad_clip": "--model.optimisation.gradient_clip_norm",
    "num_ensembles": "--model.critic.num_critics",
    "num_heads": "--model.critic.head_dim",
    "dropout_rate": "--model.critic.dropout",
    "use_modality_embeddings": "--model.critic.modality_embeddings",
    "use_attention_entropy_loss": "--model.entropy_control",
    "attention_entropy_target": "--model.entropy_control.targets",
    "attention_entropy_temperature_init": "--model.entropy_control.initial",
    "attention_entropy_temperature_min": "--model.entropy_control.minimum",
    "attention_entropy_temperature_max": "--model.entropy_control.maximum",
    "temp_type": "--model.entropy_control.form",
    "actor_hidden_dims": "--model.policy.hidden_dims",
    "actor_layer_norm": "--model.policy.layer_norm",
    "extraction": "--model.extraction",
    "num_samples": "--model.policy.num_samples",
}
FORMER_NAMES = {  # of earlier versions, whose last part is another now
    "critic_learning_rate": "--model.optimisation.learning_rate",
    "temperature_learning_rate": "--model.optimisation.learning_rates",
    "actor_learning_rate": "--model.optimisation.learning_rates",
}
FIELD_NAMES = {  # of the literature and of other libraries
    "gamma": "--model.discount",
    "polyak": "--model.tau",
    "target_update_rate": "--model.tau",
    "learning_rate": "--model.optimisation.learning_rate",
    "epochs": "--trainer.max_steps",
    "steps": "--trainer.max_steps",
    "device": "--trainer.accelerator",
    "output": "--trainer.default_root_dir",
    "dataset": "--data.dataset",
    "env": "--data.dataset.env_id",
    "config": "--config",
}
LINK_OR_HELP = re.compile(r" --> |(\+|help)$")  # what argparse lists as options besides settings


def option_names(parser: Any) -> dict[str, list[type]]:
    """Options of a parser, and of every imported class that one of its options takes, with the classes each takes."""
    names: dict[str, list[type]] = {}
    for action in actions(parser):
        is_setting = action.option_strings and not action.option_strings[0].endswith(".help")
        kinds = [part for kind in _classes(argument_type(action)) for part in _with_subclasses(kind) if is_setting]
        names |= dict.fromkeys(action.option_strings, kinds)
        for part in kinds:
            if part.__module__.startswith("tql_lightning."):
                names |= {f"{action.option_strings[0]}.{name}": [] for name in _arguments(part)}
    return names


def add_note(error: Exception, options: Mapping[str, Sequence[type]], arguments: Sequence[str]) -> None:
    """Adds a note with close names to a parser's error about an unknown name.

    Args:
        error: Error that a parser raised.
        options: Every option (`option_names`).
        arguments: Command line that it parsed.
    """
    if words := unrecognized(error):
        options_like = [word for word in words if word.startswith("--") or "=" in word]
        close = [name for word in options_like for name in close_options(word.partition("=")[0], options)]
        _note(error, [f"--config {word}" for word in words if word in packaged_configs()] or close)
    elif is_unknown_key(error) and (key := key_of(error)):
        _note(error, [name.removeprefix("--") for name in close_options(key, options)])
    elif found := unknown_argument(error):
        _note_arguments(error, *found)
    elif path := no_dataset(error):
        error.add_note(f"a function says so by its annotation: def {path.rpartition('.')[2]}(...) -> TransitionDataset")
    elif missing := next((cause for cause in _causes(error) if isinstance(cause, AttributeError)), None):
        _note(error, difflib.get_close_matches(str(missing.name), dir(missing.obj), n=2))
    elif lacks := [argument for argument in arguments if f"{argument}: " in str(error) and argument in options]:
        error.add_note(f"give it a value, as in {lacks[0]}=true or {lacks[0]}=3")
    else:
        _note(error, [name for option, value in _values(arguments) for name in _close_classes(value, options, option)])


def _values(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options of a command line with their values."""
    for before, argument in pairwise(["", *arguments]):
        flag, equals, value = argument.partition("=")
        yield (flag, value) if equals else (before, argument)


def _close_classes(value: str, options: Mapping[str, Sequence[type]], option: str) -> list[str]:
    """Names of an option's classes that are close to a value that is none of them."""
    names = [kind.__name__ for kind in options.get(option, ())]
    return [] if value in names else difflib.get_close_matches(value, names, n=2)


def close_options(word: str, options: Collection[str]) -> list[str]:
    """At most two options that a word may stand for; those whose last part is the same come first.

    Args:
        word: Option as the user wrote it, with or without dashes.
        options: Every option.
    """
    name = word.removeprefix("--").replace("-", "_")
    last = name.rpartition(".")[2]
    other = (RELEASE_NAMES | FORMER_NAMES | FIELD_NAMES).get(last)
    if other in options and f"--{name}" not in options:
        return [str(other)]
    settings = {option.removeprefix("--"): option for option in sorted(options) if not LINK_OR_HELP.search(option)}
    same = [setting for setting in settings if setting.rpartition(".")[2] == last]
    same = same or sorted((setting for setting in settings if setting.startswith(name)), key=len)
    return [settings[setting] for setting in same[:2] or difflib.get_close_matches(name, settings, n=2)]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exceptions that led to one, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _note(error: Exception, names: list[str]) -> None:
    if names:
        error.add_note(f"did you mean {' or '.join(dict.fromkeys(names))}?")


def _note_arguments(error: Exception, path: str, argument: str) -> None:
    if argument == "class_path":
        error.add_note("beside class_path stands init_args alone, and under it what the class takes")
        return
    module, _, name = path.rpartition(".")
    accepted = _arguments(getattr(sys.modules.get(module), name, None))
    close = difflib.get_close_matches(argument, accepted, n=2)
    if close or accepted:
        error.add_note(f"did you mean {' or '.join(close)}?" if close else f"it takes: {', '.join(accepted)}")


def _arguments(part: Any) -> list[str]:
    """Names of the arguments of a class or function that a user can set."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    try:
        parameters = inspect.signature(part).parameters
    except (TypeError, ValueError):
        return []
    given = {"observation_dim", "action_dim", "support"}
    if "num_tokens" in parameters:  # entropy control gets both from the critic
        given |= {"num_layers", "num_tokens"}
    return [each.name for each in parameters.values() if each.kind not in kinds and each.name not in given]


def _classes(hint: Any) -> list[type]:
    """The classes in a type, however deeply nested, that are ours or a kind of Lightning's."""
    if isinstance(hint, type) and hint.__module__.startswith(("tql_lightning.", "lightning.")):
        return [hint]
    parts = [each for part in get_args(hint) for each in (part if isinstance(part, list) else [part])]
    return [kind for part in parts for kind in _classes(part)]


def _with_subclasses(kind: type) -> list[type]:
    below: list[type] = type.__subclasses__(kind)
    return [kind, *(each for part in below for each in _with_subclasses(part))]
