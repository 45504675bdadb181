"""Checks what a file of ``torch.save`` claims to hold, without torch, before torch reads it.

``torch.load`` with weights only executes no code, but a crafted file can make it allocate any amount of memory, read
beyond a storage, or hash and compare values for a long time. This module reads the pickle as a list of instructions. It
allows only those that ``torch.save`` writes, and keeps a short description of each value instead of the value, so that
time and memory are proportional to the size of the file.
"""

from __future__ import annotations

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from tql_lightning.trust.archive import Archive, ArchiveError, read_archive, read_member
from tql_lightning.trust.pickled import Made, Name, TorchFileError
from tql_lightning.trust.tensor_claims import TensorClaims, makes_tensor
from tql_lightning.trust.text import shown

MOST_VALUES = 2_000_000  # of a file, counted as often as they are reached
MOST_PICKLE_BYTES = 64 << 20
DEEPEST = 64  # values within values
MOST_ODD_KEYS = 10_000  # values in keys that are neither text nor of 64 bits: crafted ones may all have one hash
LARGEST_INT_BYTES = 32

_ENTRIES = ("collections.OrderedDict", "collections.Counter", "builtins.set")
_MADE_OF_VALUES = ("torch.Size", "torch.device", "builtins.complex")
_TYPE = re.compile(r"torch\.[a-z]\w*|torch(\.cuda)?\.[A-Z]\w*Storage|torch\.storage\.(Typed|Untyped)Storage")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS_AND_TEXT = ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1")
_MADE_OF = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def check_torch_file(path: Path, allowed: Collection[str] = ()) -> int:
    """Compares what a file claims with what is in it.

    Args:
        path: Path of the file.
        allowed: Dotted names that the file may refer to besides those that ``torch.save`` writes for plain data and
            tensors; whether they may be called is for ``torch.load`` to say.

    Returns:
        Bytes of all its tensors' storages.

    Raises:
        TorchFileError: it claims more than it holds, or holds what ``torch.save`` does not write.
        ArchiveError: it is damaged, or no archive as ``torch.save`` writes it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return check_torch_stream(file, allowed)


def check_torch_stream(file: BinaryIO, allowed: Collection[str] = ()) -> int:
    """Does what `check_torch_file` does, on an open file."""
    archive = read_archive(file)
    pickled = archive.members.get("data.pkl")
    if pickled is None:
        raise ArchiveError("its archive holds no data.pkl")
    if pickled.size > MOST_PICKLE_BYTES:
        raise TorchFileError(f"its data.pkl is of more than {MOST_PICKLE_BYTES >> 20} MiB")
    reader = _PickleReader(read_member(file, pickled), archive, allowed)
    reader.read()
    return reader.claims.finish()


class _PickleReader:
    """Follows a pickle's instructions, and keeps a description of each value instead of the value."""

    def __init__(self, content: bytes, archive: Archive, allowed: Collection[str]) -> None:
        self._content, self._allowed = content, frozenset(allowed)
        self.claims = TensorClaims({name: member.size for name, member in archive.members.items()})
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._odd_keys = 0

    def read(self) -> None:
        """Reads all instructions, and counts the values that they would make.

        Raises:
            TorchFileError: An instruction, or a value that it would make, is not allowed.
        """
        try:
            self._follow()
        except (TorchFileError, ArchiveError):
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise TorchFileError(f"its data.pkl is damaged ({type(error).__name__})") from error
        if len(self._stack) != 1 or self._marks:
            raise TorchFileError("its data.pkl is damaged (it leaves values over)")
        _count(self._stack[0])

    def _follow(self) -> None:
        content = BytesIO(self._content)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > MOST_VALUES:
                raise TorchFileError(f"it holds more than {MOST_VALUES:,} values")
            if (count == 0) != (opcode.name == "PROTO") or (count == 0 and argument != 2):
                raise TorchFileError("its data.pkl is of another protocol than torch.save's")
            self._step(opcode.name, argument)
        if content.tell() != len(self._content):
            raise TorchFileError("its data.pkl is followed by more")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _NUMBERS_AND_TEXT:
            if name == "LONG1" and argument.bit_length() >= 8 * LARGEST_INT_BYTES:
                raise TorchFileError(f"it holds a number of more than {LARGEST_INT_BYTES} bytes")
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in _MADE_OF:
            stack.append(tuple(self._pop(_MADE_OF[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append(Made(name.removeprefix("EMPTY_").lower()))
        elif name in ("APPEND", "APPENDS"):
            self._fill(("list",), self._pop(1) if name == "APPEND" else self._pop_to_mark())
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
            self._check_keys(items[::2])
            self._fill(("dict", "collections.OrderedDict", "collections.Counter"), items)
        elif name == "GLOBAL":
            stack.append(self._named(*argument.split(" ", 1)))
        elif name == "BINPERSID":
            (reference,) = self._pop(1)
            stack.append(self.claims.storage(reference))
        elif name in ("REDUCE", "NEWOBJ"):
            called, arguments = self._pop(2)
            stack.append(self._call(called, arguments, new=name == "NEWOBJ"))
        elif name == "BUILD":
            (state,) = self._pop(1)
            self._build(stack[-1], state)
        elif name not in ("PROTO", "STOP"):
            raise TorchFileError(f"its data.pkl holds {name}, which torch.save does not write")

    def _named(self, module: str, name: str) -> Name:
        """Returns the dotted name of a GLOBAL instruction; protocol 2 writes the names of Python 2."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        path = f"{module}.{name}"
        known = path in (*_ENTRIES, *_MADE_OF_VALUES, "_codecs.encode", *self._allowed) or makes_tensor(path)
        if not known and not _TYPE.fullmatch(path):
            raise TorchFileError(f"it refers to {shown(path)}")
        return Name(path)

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) - count < (self._marks[-1] if self._marks else 0):
            raise TorchFileError("its data.pkl is damaged (it takes more values than there are)")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _pop_to_mark(self) -> list[Any]:
        place = self._marks.pop()
        taken = self._stack[place:]
        del self._stack[place:]
        return taken

    def _fill(self, kinds: tuple[str, ...], parts: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, Made) or target.kind not in kinds:
            raise TorchFileError("its data.pkl is damaged (it fills what is no list or dict)")
        target.parts += parts

    def _check_keys(self, keys: list[Any]) -> None:
        """Refuses keys that make a dict or set take quadratic time, or endless time."""
        for key in keys:
            if isinstance(key, str) or (isinstance(key, int) and key.bit_length() <= 64):
                continue
            left = [key]
            while left:  # equal parts of tuples are compared, and their hash is taken anew each time
                part = left.pop()
                self._odd_keys += 1
                if self._odd_keys > MOST_ODD_KEYS or isinstance(key, Made):
                    raise TorchFileError("it holds keys that are neither text nor whole numbers")
                left += part if isinstance(part, tuple) else ()

    def _call(self, called: Any, arguments: Any, new: bool) -> Any:
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise TorchFileError("its data.pkl is damaged (it calls what is no name)")
        made = Made(called.path, list(arguments))
        if makes_tensor(called.path):
            self.claims.tensor(called.path, arguments)
        elif called.path in _ENTRIES and not new:
            self._check_entries(called.path, arguments)
        elif called.path == "_codecs.encode":
            if len(arguments) != 2 or arguments[1] not in ("latin1", "latin-1"):
                raise TorchFileError("its data.pkl is damaged (it encodes text in another way than torch.save)")
        elif called.path not in (*_MADE_OF_VALUES, *self._allowed):
            raise TorchFileError(f"it calls {shown(called.path)}")
        return made

    def _check_entries(self, path: str, arguments: tuple[Any, ...]) -> None:
        """What an OrderedDict, a Counter or a set is made from."""
        (content,) = arguments or (Made("list"),)
        if not isinstance(content, Made) or content.kind not in ("list", "dict"):
            raise TorchFileError(f"its data.pkl is damaged (it makes a {path} of something else than entries)")
        if content.kind == "dict":
            return  # its keys have been checked
        if path == "builtins.set":
            self._check_keys(content.parts)
        elif content.parts:
            raise TorchFileError(f"its data.pkl is damaged (it makes a {path} of a list)")

    def _build(self, target: Any, state: Any) -> None:
        if not isinstance(target, Made) or target.kind in ("list", "dict") or makes_tensor(target.kind):
            raise TorchFileError("its data.pkl is damaged (it changes what is complete)")
        target.parts.append(state)


def _count(root: Any) -> None:
    """Refuses endless values: those that contain themselves, or share parts so often that a walk does not end."""
    sizes: dict[int, int] = {}  # by identity, once everything below is counted
    depths: dict[int, int] = {}
    open_: set[int] = set()
    left: list[tuple[Any, bool]] = [(root, False)]
    while left:
        value, leaving = left.pop()
        parts = value.parts if isinstance(value, Made) else value
        if leaving:
            open_.discard(id(value))
            inside = [part for part in parts if isinstance(part, tuple | Made)]
            sizes[id(value)] = 1 + len(parts) - len(inside) + sum(sizes[id(part)] for part in inside)
            depths[id(value)] = 1 + max((depths[id(part)] for part in inside), default=0)
            if sizes[id(value)] > MOST_VALUES or depths[id(value)] > DEEPEST:
                raise TorchFileError(f"it holds more than {MOST_VALUES:,} values, or values more than {DEEPEST} deep")
        elif id(value) in open_:
            raise TorchFileError("it holds a value within itself")
        elif isinstance(value, tuple | Made) and id(value) not in sizes:
            open_.add(id(value))
            left.append((value, True))
            left += [(part, False) for part in parts if isinstance(part, tuple | Made)]
