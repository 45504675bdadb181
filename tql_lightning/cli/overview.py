"""The list of commands, without importing Lightning."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence

from tql_lightning.cli.commands import COMMANDS, GROUPS
from tql_lightning.cli.help import DESCRIPTION, CommandError, summaries, text_width

OTHER_NAMES = {"train": "fit", "resume": "fit", "run": "fit", "eval": "evaluate", "play": "evaluate", "plot": "report"}


def overview() -> str:
    """Help of ``tql`` itself."""
    width = text_width(100)
    lines = ["usage: tql COMMAND [options]", "", *textwrap.wrap(DESCRIPTION, width), "", "commands:"]
    for name, summary in summaries(COMMANDS, GROUPS).items():
        lines += textwrap.wrap(f"    {name:12}{summary}", width, subsequent_indent=" " * 16)
    end = "tql COMMAND --help explains one; tql --version; tql completion bash (or zsh) completes them."
    return "\n".join([*lines, "", *textwrap.wrap(end, width)])


def check_command(arguments: Sequence[str]) -> None:
    """Refuses a command line without a command that there is, and suggests close ones.

    Raises:
        CommandError: There is no such command.
    """
    known, name = [*summaries(COMMANDS, GROUPS)], arguments[0] if arguments else ""
    if not name:
        raise CommandError(f"expected a command, found none; there is: {', '.join(known)}")
    if name in (*known, "-h", "--help"):
        return
    if name.startswith("-"):
        raise CommandError(f"{name:.80}: expected a command before options; there is: {', '.join(known)}")
    longer = [each for each in known if each.startswith(name)]
    close = [OTHER_NAMES[name]] if name in OTHER_NAMES else longer or difflib.get_close_matches(name, known, n=2)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    raise CommandError(f"{name:.80}: no such command; {meant}there is: {', '.join(known)}")
