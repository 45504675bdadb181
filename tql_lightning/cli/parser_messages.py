"""The English texts of jsonargparse's errors, which carry their names in no other form.

`tests/cli/test_parser_messages.py` provokes each text and fails where the installed version words it otherwise. A text
that is not recognised is shown whole and without a suggestion.
"""

from __future__ import annotations

import re

UNRECOGNIZED = "unrecognized arguments:"
KEY = re.compile(r'does not accept option \'([\w.]+)\'|^Parser key "([\w.]+)"')
NO_DATASET = re.compile(r"Import path ([\w.]+) does not correspond to a subclass of TransitionDataset")
UNKNOWN_ARGUMENT = re.compile(r"class_path '([\w.]+)'.*?Option '(\w+)' is not accepted", re.DOTALL)
ARGUMENT_OF_PART = re.compile(r"Option '(\w+)' is not accepted\. Got value: Namespace\(class_path='([\w.]+)'")
WORDY_PART = re.compile(
    r"Type collections\.abc\.Callable\[.*?\] expects a function or a callable class: |\.? Got value: Namespace\(.*"
)
BOILERPLATE = (  # beginnings of lines that list the types that were tried
    "Does not validate against any of the Union subtypes",
    "Errors:",
    "Given value type:",
    "Not a valid subclass of",
    "Subclass types expect one of",
    "Subtypes:",
    "a class path (str)",
    "a dict with",
    "Expected a <class 'NoneType'>",
    "Expected a <class 'bool'>",
    "Expected a <class 'collections.abc.Iterable'>",
    "Expected a path but",
    "Given value: NestedArg",
    "Given value: {",
    "Given value: Namespace",
    "Problem with given class_path 'lightning.Callback'",
)


def unrecognized(error: Exception) -> list[str]:
    """The words of a command line that a parser does not know."""
    text = str(error)
    return text.removeprefix(UNRECOGNIZED).split() if text.startswith(UNRECOGNIZED) else []


def key_of(error: Exception) -> str | None:
    """Name of the setting in an error, such as "trainer.max_steps"; None where it names none."""
    found = KEY.search(str(error))
    return (found[1] or found[2]) if found else None


def is_unknown_key(error: Exception) -> bool:
    """Whether there is no such setting as `key_of`."""
    return "does not accept option" in str(error)


def unknown_argument(error: Exception) -> tuple[str, str] | None:
    """Import path of a class or function, and the argument that it does not take."""
    if found := ARGUMENT_OF_PART.search(str(error)):
        return found[2], found[1]
    found = UNKNOWN_ARGUMENT.search(str(error))
    return (found[1], found[2]) if found else None


def no_dataset(error: Exception) -> str | None:
    """Import path of a function that is not annotated as one that returns a dataset."""
    found = NO_DATASET.search(str(error))
    return found[1] if found else None


def informative_lines(message: str, most: int) -> list[str]:
    """The lines of a message without boilerplate, repetitions, and what is longer than this many characters."""
    lines = [line.strip() for line in WORDY_PART.sub("", message).splitlines() if line.strip()]
    lines = [line if len(line) <= most else f"{line[:most]}..." for line in lines]
    informative = [line for line in lines if not line.removeprefix("- ").startswith(BOILERPLATE)]
    return list(dict.fromkeys(informative or lines))
