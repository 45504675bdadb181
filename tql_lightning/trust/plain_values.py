"""Values as a checkpoint can hold them: those that are read back with weights only."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tql_lightning.trust.text import shown

ArrayAs = Callable[[Any], Any]
DEEPEST = 60  # values within values; `torch_file` reads 64

_SCALARS = (bool, int, float, complex, str, bytes)
_KEPT = (Tensor, torch.dtype, torch.device, torch.Size, type(None))


def plain(value: Any, name: str, array_as: ArrayAs = torch.from_numpy, tensor_as: ArrayAs = lambda each: each) -> Any:
    """Converts a value to plain numbers, text, tensors and lists, tuples, sets and dicts of them, where that is exact.

    NumPy's scalars become numbers, paths become text, and other containers become Python's. Plain values stay the same
    objects.

    Args:
        value: Value to convert.
        name: Name of the value in errors, such as "model.discount".
        array_as: Function for NumPy arrays of numbers.
        tensor_as: Function for tensors.

    Raises:
        ValueError: A value cannot be converted; the message names it.
    """
    return _Converter(array_as, tensor_as).convert(value, name, 0)


class _Converter:
    def __init__(self, array_as: ArrayAs, tensor_as: ArrayAs) -> None:
        self._array_as, self._tensor_as = array_as, tensor_as

    def convert(self, value: Any, name: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError(f"{name[:80]}: expected values at most {DEEPEST} deep, found more, or one within itself")
        if isinstance(value, Tensor):
            return self._tensor_as(value)
        if type(value) in _SCALARS or isinstance(value, _KEPT):
            return value
        if isinstance(value, Mapping):
            return self._mapping(value, name, depth)
        if isinstance(value, np.ndarray):
            return self._array(value, name, depth)
        if isinstance(value, Sequence | AbstractSet | deque) and not isinstance(
            value, str | bytes | bytearray | memoryview
        ):
            return self._container(value, name, depth)
        return _scalar(value, name)

    def _mapping(self, value: Mapping[Any, Any], name: str, depth: int) -> Any:
        converted = {
            _key(key, name): self.convert(part, f"{name}.{shown(key)}", depth + 1) for key, part in value.items()
        }
        if len(converted) < len(value):
            raise ValueError(f"{name}: expected keys that differ as plain text and numbers, found two that are alike")
        if type(value) in (dict, OrderedDict):
            same = all(old is new for old, new in zip(value.values(), converted.values(), strict=True))
            if same and all(old is new for old, new in zip(value, converted, strict=True)):
                return value
        return OrderedDict(converted) if isinstance(value, OrderedDict) else converted

    def _container(self, value: Any, name: str, depth: int) -> Any:
        converted = [self.convert(part, f"{name}[{place}]", depth + 1) for place, part in enumerate(value)]
        kind = tuple if isinstance(value, tuple) else set if isinstance(value, AbstractSet) else list
        if type(value) is kind and all(old is new for old, new in zip(value, converted, strict=True)):
            return value
        try:
            return kind(converted)
        except TypeError as error:  # a part of a set became a list
            raise _refusal(value, name) from error

    def _array(self, value: Any, name: str, depth: int) -> Any:
        if type(value) in (np.ndarray, np.memmap):
            if value.dtype.kind in "US":
                return self.convert(value.tolist(), name, depth)
            if value.dtype.kind in "biufc":
                native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
                with suppress(TypeError):  # torch has no such dtype
                    return self.convert(self._array_as(native), name, depth)
        raise _refusal(value, name)


def _key(key: Any, name: str) -> Any:
    return key if key is None or type(key) in _SCALARS else _scalar(key, f"{name}: its key")


def _scalar(value: Any, name: str) -> Any:
    """A number or text of Python's own types, equal to the value."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        item = value.item()
        if isinstance(item, np.longdouble) and (float(item) == item or item != item):
            return float(item)
        if type(item) in _SCALARS:
            return item
    elif not isinstance(value, Enum):  # which is read back as another type
        for kind in _SCALARS:
            if isinstance(value, kind):
                return "".join(value) if kind is str else kind(value)  # type: ignore[arg-type]
        if isinstance(value, bytearray):
            return bytes(value)
    raise _refusal(value, name)


def _refusal(value: Any, name: str) -> ValueError:
    found = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    return ValueError(
        f"{name}: expected what a checkpoint can be read back with (numbers, text, tensors, and lists or dicts of "
        f"them), found {found}; convert it, or leave it out of what is saved"
    )
