"""Private names of jsonargparse and argparse, each behind a function; the others are in `system.private_api`."""

from __future__ import annotations

from argparse import Action, ArgumentParser
from typing import Any


def actions(parser: ArgumentParser) -> list[Action]:
    """The options and positional arguments of a parser."""
    return parser._actions


def argument_groups(parser: ArgumentParser) -> list[Any]:
    """The groups under which the help lists a parser's arguments."""
    return parser._action_groups


def subcommand_choices(action: Action) -> list[Action]:
    """The entries of the help for the subcommands of an action."""
    entries: Any = action
    return list(entries._choices_actions)


def argument_type(action: Action) -> Any:
    """The type that jsonargparse checks an argument against; None where it checks none."""
    return getattr(action, "_typehint", None)


def take_many(action: Any, item: type) -> None:
    """Makes an argument of a list type take its items one after the other, instead of as one list in YAML."""
    action.nargs, action._typehint = "+", item
