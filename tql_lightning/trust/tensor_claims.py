"""What a file says of its tensors, compared with the bytes that it holds for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tql_lightning.trust.pickled import Made, Name, Storage, TorchFileError
from tql_lightning.trust.text import shown

BYTES = {  # of an element, by the name of the storage that holds it
    **dict.fromkeys(("ComplexDoubleStorage",), 16),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage", "UntypedStorage"), 1),
}
VIEWS = 8  # tensors may show each byte so many times
SPARE = 1_000_000  # elements that tensors may show beyond that
MOST_DIMENSIONS = 64

_OF_RAW_BYTES = "torch._utils._rebuild_tensor_v3"  # its seventh argument is the type of its elements
_OF_A_STORAGE = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", _OF_RAW_BYTES)
_OF_A_TENSOR = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


def makes_tensor(path: str) -> bool:
    """Whether what a dotted name stands for makes a tensor."""
    return path in (*_OF_A_STORAGE, *_OF_A_TENSOR)


class TensorClaims:
    """Adds up what a file says of its tensors.

    Args:
        sizes: bytes of the archive's parts by name; a storage's is "data/KEY".
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._storages: dict[str, int] = {}
        self._shown = 0  # elements of all tensors

    def storage(self, reference: Any) -> Storage:
        """A storage by what the pickle refers to it with: ("storage", kind, key, device, number of elements).

        Raises:
            TorchFileError: the file does not hold it, or not in that size.
        """
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            raise TorchFileError("it refers to what is no storage")
        _, kind, key, device, count = reference
        module, _, name = kind.path.rpartition(".") if isinstance(kind, Name) else ("", "", "")
        each = BYTES.get(name) if module in ("torch", "torch.storage", "torch.cuda") else None
        held = self._sizes.get(f"data/{key}") if isinstance(key, str) else None
        if each is None or type(count) is not int or held != count * each or not isinstance(device, str):
            raise TorchFileError(f"it claims {shown(count)} elements of {shown(name or kind)} where {held} bytes are")
        self._storages[key] = held
        return Storage(count, each)

    def tensor(self, path: str, arguments: tuple[Any, ...]) -> None:
        """A tensor by what it is made from.

        Raises:
            TorchFileError: it shows elements that its storage does not have.
        """
        if path in _OF_A_TENSOR:
            made = arguments[0] if arguments else None
            if not isinstance(made, Made) or not makes_tensor(made.kind):
                raise TorchFileError("it holds a parameter of what is no tensor")
            return
        storage, offset, shape, strides = arguments[:4]
        shape, strides = _numbers(shape), _numbers(strides)
        if not isinstance(storage, Storage) or type(offset) is not int or offset < 0 or len(shape) != len(strides):
            raise TorchFileError("it holds a tensor of what is no storage")
        room = storage.count // _bytes_of(arguments[6]) if path == _OF_RAW_BYTES else storage.count
        elements, last = 1, offset
        for size, stride in zip(shape, strides, strict=True):
            elements *= size
            last += (size - 1) * stride
        if elements and (last >= room or elements > max(room, SPARE)):
            raise TorchFileError(f"it holds a tensor of {shown(elements)} elements in a storage of {room}")
        self._shown += elements

    def finish(self) -> int:
        """Bytes of all storages.

        Raises:
            TorchFileError: tensors show them more often than training does.
        """
        held = sum(self._storages.values())
        if self._shown > VIEWS * held + SPARE:
            raise TorchFileError(f"its tensors show {self._shown} elements of {held} bytes")
        return held


def _numbers(value: Any) -> tuple[int, ...]:
    """Sizes or strides: as a tuple, or a ``torch.Size`` of one.

    Raises:
        TorchFileError: it is none.
    """
    if isinstance(value, Made) and value.kind == "torch.Size" and len(value.parts) == 1:
        value = value.parts[0]
    if not isinstance(value, tuple) or len(value) > MOST_DIMENSIONS:
        raise TorchFileError("it holds a tensor of no shape")
    if any(type(each) is not int or not 0 <= each < 1 << 62 for each in value):
        raise TorchFileError("it holds a tensor of no shape")
    return value


def _bytes_of(dtype: Any) -> int:
    """Bytes of an element, by the first number in its type's name: 2 of ``torch.uint16``."""
    bits = re.search(r"\d+", dtype.path) if isinstance(dtype, Name) else None
    return max(1, int(bits[0]) // 8) if bits else 16
