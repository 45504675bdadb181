"""Descriptions that replace a pickle's values while it is checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tql_lightning.trust.text import FileError


class TorchFileError(FileError):
    """A file claims more than it holds, or holds what ``torch.save`` does not write; the message says why."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something that a pickle refers to by its module and name; never imported."""

    path: str


@dataclass(slots=True, eq=False)
class Made:
    """Something that a pickle makes.

    Attributes:
        kind: "list", "dict", or the name of what makes it.
        parts: what it is made of and filled with.
    """

    kind: str
    parts: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers that a file holds: how many, of how many bytes each (1: raw bytes, whose type a tensor tells)."""

    count: int
    each: int
