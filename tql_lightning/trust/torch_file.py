"""What a file of ``torch.save`` claims to hold, looked at without torch, before anything is made of it.

``torch.load`` with weights only executes nothing, but it takes memory for whatever sizes a file names, reads numbers
beyond those that are there, and unpacks compressed parts of any size.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

BYTES = {  # of an element, by the name of the storage that holds it
    **dict.fromkeys(("ComplexDoubleStorage",), 16),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage", "UntypedStorage"), 1),
}
SIZED = ("Tensor", "Storage", "bytearray")  # ends of names that weights-only loading calls with a size


def check_torch_file(path: Path) -> int:
    """Compares what a file claims with what is in it.

    Returns:
        Bytes of all its tensors' storages.

    Raises:
        ValueError: it is no archive as ``torch.save`` writes it, or claims more than it holds.
        OSError, zipfile.BadZipFile, pickle.UnpicklingError: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member.file_size for member in archive.infolist()}
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
        if packed or len(members) < len(archive.infolist()) or sum(members.values()) > path.stat().st_size:
            raise ValueError("its archive is packed otherwise than torch.save does")
        (pickled,) = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1] or [""]
        if not pickled:
            raise ValueError("its archive holds no data.pkl")
        inspector = _Inspector(archive.read(pickled), pickled.removesuffix("data.pkl") + "data/", members)
    try:
        inspector.load()
    except (pickle.UnpicklingError, ValueError):
        raise
    except Exception as error:  # whatever a forged pickle makes of things that are not what they seem
        raise pickle.UnpicklingError(f"its data.pkl is damaged ({type(error).__name__})") from error
    return sum(inspector.storages.values())


class _Made:
    """Stands for whatever a name makes; takes any state."""

    def append(self, _: object) -> None:
        """Of an instruction that fills what was made."""

    def extend(self, _: object) -> None:
        """As `append`."""

    def __setitem__(self, _: object, __: object) -> None:
        """As `append`."""


class _Named:
    """Stands for what a pickle names."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: object) -> _Made:
        if self.name.endswith(SIZED):
            raise ValueError(f"it holds a {self.name} by its size alone")
        return _Made()


# The slower unpickler: the other takes memory for whatever place a pickle says it remembers something at.
class _Inspector(pickle._Unpickler):
    """Walks through a pickle of tensors, in which nothing is what it is called."""

    def __init__(self, content: bytes, folder: str, members: dict[str, int]) -> None:
        super().__init__(io.BytesIO(content))
        self._folder, self._members = folder, members
        self.storages: dict[str, int] = {}

    def find_class(self, _: str, name: str) -> _Named:
        """Imports nothing."""
        return _Named(name)

    def persistent_load(self, reference: Any) -> _Made:
        """A storage: (kind, type, key, device, number of elements)."""
        _, kind, key, _, count = reference
        each = BYTES.get(kind.name) if isinstance(kind, _Named) else None
        held = self._members.get(f"{self._folder}{key}")
        if each is None or not isinstance(count, int) or held != count * each:
            found = kind.name if isinstance(kind, _Named) else kind
            raise ValueError(f"it claims {count} elements of {found} where {held} bytes are")
        self.storages[key] = held
        return _Made()
