"""YAML of files, once it is known to end: a few lines can stand for more values than memory holds."""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 100_000  # with every alias written out
DEEPEST = 40


def read_yaml(text: str) -> Any:
    """The plain data that a YAML text holds.

    Raises:
        ValueError: as `check_yaml`.
        yaml.YAMLError: it is no YAML, or asks for Python objects.
    """
    check_yaml(text)
    return yaml.safe_load(text)


def check_yaml(text: str) -> None:
    """Refuses values within themselves, very deep or very many; whoever reads the text tells of other mistakes.

    Raises:
        ValueError: with what was found.
    """
    sizes: dict[str | None, int] = {}
    opened: list[tuple[str | None, int]] = []  # anchors, and values before them
    values = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            anchor = getattr(event, "anchor", None)
            if isinstance(event, yaml.AliasEvent):
                if anchor in [name for name, _ in opened]:
                    raise ValueError(f"YAML: expected values that end, found *{anchor:.40} within itself; write it out")
                values += sizes.get(anchor, 0)
            elif isinstance(event, yaml.CollectionStartEvent):
                opened.append((anchor, values))
                values += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                name, before = opened.pop()
                sizes[name] = values - before
            elif isinstance(event, yaml.ScalarEvent):
                sizes[anchor] = 1
                values += 1
            if values > MOST_VALUES or len(opened) > DEEPEST:
                raise ValueError(
                    f"YAML: expected at most {MOST_VALUES:,} values, {DEEPEST} deep, found more; write less"
                )
    except yaml.YAMLError:
        return
