"""YAML of files, once it is known to end: a few lines can stand for more values than memory holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tql_lightning.trust.bounded import read_text

MOST_VALUES = 100_000  # with every alias written out
DEEPEST = 40
MOST_CHARACTERS = 1 << 20

# YAML reads 1:30 as a number in base 60. A long one takes hours to compute, or overflows.
_BASE_60 = re.compile(r"[-+]?\d[\d_]*(:\d\d?)+(\.[\d_]*)?")
_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_LONGEST_NUMBER = 100


def read_yaml(text: str) -> Any:
    """The plain data that a YAML text holds.

    Raises:
        ValueError: See `check_yaml`.
        yaml.YAMLError: it is no YAML, or asks for Python objects.
    """
    check_yaml(text)
    try:
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        raise
    except Exception as error:  # of what a tag makes of its value, such as a KeyError for !!bool x
        raise ValueError(f"YAML: expected plain values, found one that cannot be read ({error!r:.80})") from error


def read_yaml_file(path: Path) -> Any:
    """As `read_yaml`, of a file, which `tql_lightning.trust.bounded.require_regular` accepts.

    Raises:
        ValueError: See `read_yaml`; or the file is not regular.
        OSError: it cannot be read.
        yaml.YAMLError: as `read_yaml`.
    """
    return read_yaml(read_text(path, 4 * MOST_CHARACTERS))


def check_yaml(text: str) -> None:
    """Refuses values that contain themselves, are nested deeply, are too many or too long; YAML finds other mistakes.

    Raises:
        ValueError: with what was found.
    """
    sizes: dict[str | None, int] = {}
    opened: list[tuple[str | None, int]] = []  # anchors, and values before them
    values = 0
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"YAML: expected at most {MOST_CHARACTERS:,} characters, found {len(text):,}; write less")
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
                is_number = event.tag in _TAGS or _BASE_60.fullmatch(event.value)
                if len(event.value) > _LONGEST_NUMBER and is_number:
                    raise ValueError(f"YAML: expected shorter numbers, found {event.value[:20]}...; put text in quotes")
                sizes[anchor] = 1
                values += 1
            if values > MOST_VALUES or len(opened) > DEEPEST:
                raise ValueError(
                    f"YAML: expected at most {MOST_VALUES:,} values, {DEEPEST} deep, found more; write less"
                )
    except yaml.YAMLError:
        return
