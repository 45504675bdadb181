"""Values become plain where that is exact, and are refused by name where it is not."""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tql_lightning.trust.plain_values import plain

Pair = namedtuple("Pair", "one two")
CONVERTED: list[tuple[Any, Any]] = [
    (np.float64(0.1), 0.1),
    (np.float32(0.1), float(np.float32(0.1))),
    (np.float16(0.5), 0.5),
    (np.longdouble(0.5), 0.5),
    (np.int64(3), 3),
    (np.uint8(3), 3),
    (np.True_, True),
    (np.complex64(1 + 2j), 1 + 2j),
    (np.str_("a"), "a"),
    (Path("a/b"), "a/b"),
    (bytearray(b"a"), b"a"),
    (deque([np.int64(1)]), [1]),
    (defaultdict(list, {np.str_("a"): [Path("b")]}), {"a": ["b"]}),
    (Pair(np.int8(1), 2), (1, 2)),
    ({"a": (np.int64(1), {np.int64(2)})}, {"a": (1, {2})}),
    (frozenset({1}), {1}),
    (np.array(["a", "b"]), ["a", "b"]),
    (OmegaConf.create({"a": [1, "${b}"], "b": 2}), {"a": [1, 2], "b": 2}),
]


def kinds(value: Any) -> Any:
    """The types of a value, recursively."""
    if isinstance(value, dict):
        return dict, {key: (type(key), kinds(part)) for key, part in value.items()}
    return (type(value), [kinds(part) for part in value]) if isinstance(value, list | tuple | set) else type(value)


@pytest.mark.parametrize(("given", "expected"), CONVERTED, ids=lambda value: type(value).__name__)
def test_what_has_an_exact_plain_value_is_converted(given: Any, expected: Any) -> None:
    found = plain(given, "x")
    assert found == expected
    assert kinds(found) == kinds(expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.bool_, np.uint32, np.complex64, ">f4"])
def test_arrays_become_tensors_of_the_same_numbers(dtype: Any) -> None:
    array = np.arange(4).astype(dtype).reshape(2, 2)[:, ::-1]
    array.flags.writeable = False
    found = plain(array, "x")
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), array)
    assert plain(array, "x", array_as=np.ndarray.tolist) == array.tolist()


def test_what_is_plain_already_is_kept_as_it_is() -> None:
    weights = OrderedDict(a=torch.ones(2))
    value = {
        "weights": weights,
        "dtype": torch.float32,
        "many": [1, 2.5, None, "a", (True,), {3}],
        "size": torch.Size([1]),
    }
    assert plain(value, "x") is value


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        *(object(), SimpleNamespace(a=1), Colour.RED, Level.LOW, lambda: 1, np.array([object()]), circle()),
        *(np.datetime64("2020-01-01"), np.longdouble(1) / 3, np.zeros(2, [("a", int)]), np.ma.array([1])),
        *(np.zeros(1, np.longdouble), {frozenset([(1, 2)]): 1}, {"a": 1, Path("a"): 2}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_exact_plain_value_is_refused_with_its_name(value: Any) -> None:
    if isinstance(value, np.ndarray) and value.dtype == np.longdouble and np.finfo(np.longdouble).bits == 64:
        value = object()
    with pytest.raises(ValueError, match=r"^setting\.part"):
        plain({"part": value}, "setting")
