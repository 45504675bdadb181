"""A zip archive as ``torch.save`` writes it, in the one reading that every program makes of it.

Zip is read from its end, so that an archive may hold two directories of which two programs find each another one; it
may begin anywhere, name a part twice, or lay parts over each other. `read_archive` accepts none of that: what it
returns is what Python's ``zipfile`` and torch's own reader see as well.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

MOST_MEMBERS = 200_000  # storages of one file
LONGEST_COMMENT = 100  # bytes: room for a checksum

_BLOCK = 1 << 20
_END = struct.Struct("<4s4H2LH")  # signature, disk, first disk, entries here, entries, size, offset, comment's length
_END_64 = struct.Struct("<4sQ2H2L4Q")  # signature, length, versions, disk, first disk, entries twice, size, offset
_LOCATOR_64 = struct.Struct("<4sLQL")  # signature, disk, offset of the record before, disks
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_SENTINELS = (0xFFFF, 0xFFFFFFFF)  # "see the 64-bit field"
_FLAGS = 0x0808  # names in UTF-8; sizes after the content
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+/(data\.pkl|version|byteorder|\.[a-z_]+(/[a-z_]+)?|data/\d+)")


class ArchiveError(ValueError):
    """A file is no archive as ``torch.save`` writes it; the message says why."""


@dataclass(frozen=True)
class Member:
    """Where a part of an archive lies: its content's first byte, its length in bytes, and its CRC-32."""

    start: int
    size: int
    crc: int


@dataclass(frozen=True)
class Archive:
    """What an archive holds.

    Attributes:
        members: by name, below the one folder that holds them all: "data.pkl", "data/0".
        comment: bytes after the directory.
    """

    members: dict[str, Member]
    comment: bytes


def read_archive(file: BinaryIO) -> Archive:
    """Reads an archive's directory, and compares it with what lies in the file.

    Raises:
        ArchiveError: it is damaged, packed otherwise than ``torch.save`` does, or can be read in two ways.
    """
    size = file.seek(0, 2)
    end, comment = _find_end(file, size)
    entries, directory_size, directory, records = _read_end(file, end)
    if directory + directory_size != records or entries > MOST_MEMBERS or directory_size < entries * _ENTRY.size:
        raise ArchiveError("its directory is not where its end says")
    file.seek(directory)
    listed = file.read(directory_size)
    names: dict[str, Member] = {}
    place, spans = 0, [(directory, size)]
    for _ in range(entries):
        place, name, member, offset = _read_entry(file, listed, place)
        if name.casefold() in names:
            raise ArchiveError("its directory names a part twice")
        names[name.casefold()] = member
        spans.append((offset, member.start + member.size))
    spans.sort()
    overlap = any(before[1] > after[0] for before, after in pairwise(spans))
    if place != directory_size or spans[0][0] != 0 or overlap:
        raise ArchiveError("its parts do not lie one after the other from its first byte on")
    if len({name.partition("/")[0] for name in names}) != 1:
        raise ArchiveError("its parts do not lie in one folder")
    return Archive({name.partition("/")[2]: member for name, member in names.items()}, comment)


def read_member(file: BinaryIO, member: Member) -> bytes:
    """The content of a part."""
    file.seek(member.start)
    return file.read(member.size)


def is_intact(file: BinaryIO, archive: Archive) -> bool:
    """Whether every part's content has the CRC-32 that the directory says."""
    return all(_crc(file, member) == member.crc for member in archive.members.values())


def blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The next bytes of a file, at most so many, a part at a time."""
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        size -= len(block)
        yield block


def _crc(file: BinaryIO, member: Member) -> int:
    file.seek(member.start)
    crc = 0
    for block in blocks(file, member.size):
        crc = zlib.crc32(block, crc)
    return crc


def _find_end(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Where the end record begins, and the comment that follows it up to the file's last byte."""
    first = max(0, size - _END.size - LONGEST_COMMENT)
    file.seek(first)
    tail = file.read(size - first)
    found = tail.rfind(b"PK\5\6")
    if found < 0 or len(tail) - found < _END.size:
        raise ArchiveError("it is no file of torch.save")
    comment = tail[found + _END.size :]
    if int.from_bytes(tail[found + _END.size - 2 : found + _END.size], "little") != len(comment):
        raise ArchiveError("more follows its end than its comment")
    return first + found, comment


def _read_end(file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    """Number of entries, size of the directory, its offset, and where the records after it begin."""
    _, *disks, here, entries, size, offset, _ = _unpack(_END, file, end)
    found, records = (entries, size, offset), end
    locator = _unpack(_LOCATOR_64, file, end - _LOCATOR_64.size) if end > _LOCATOR_64.size else (b"",)
    if locator[0] == b"PK\6\7":
        records = end - _LOCATOR_64.size - _END_64.size
        if records < 0 or locator[1:] != (0, records, 1):
            raise ArchiveError("its 64-bit end is not where its locator says")
        signature, length, _, _, *disks_64, here_64, entries, size, offset = _unpack(_END_64, file, records)
        narrow = zip((here, *found), (here_64, entries, size, offset), strict=True)
        if signature != b"PK\6\6" or length != _END_64.size - 12 or any(disks_64) or here_64 != entries:
            raise ArchiveError("its 64-bit end is none")
        if any(short != wide and short not in _SENTINELS for short, wide in narrow):
            raise ArchiveError("its two ends say different things")
    elif here != entries:
        raise ArchiveError("it is one of several parts")
    if any(disks):
        raise ArchiveError("it is one of several parts")
    return entries, size, offset, records


def _read_entry(file: BinaryIO, listed: bytes, place: int) -> tuple[int, str, Member, int]:
    """The entry at a place of the directory: where the next begins, its name, its content, and its header's offset."""
    if len(listed) - place < _ENTRY.size:
        raise ArchiveError("its directory is cut short")
    fields = _ENTRY.unpack_from(listed, place)
    signature, _, _, flags, method, _, _, crc, packed, size = fields[:10]
    name_length, extra_length, comment_length, disk, _, _, offset = fields[10:]
    place += _ENTRY.size
    raw = listed[place : place + name_length]
    extra = listed[place + name_length : place + name_length + extra_length]
    place += name_length + extra_length
    size, packed, offset = _widened(extra, (size, packed, offset))
    if signature != b"PK\1\2" or flags & ~_FLAGS or method or packed != size or comment_length or disk:
        raise ArchiveError("its archive is packed otherwise than torch.save does")
    local = _unpack(_LOCAL, file, offset)
    start = offset + _LOCAL.size + local[-2] + local[-1]
    if local[0] != b"PK\3\4" or local[3] != 0 or local[2] & ~_FLAGS or file.read(local[-2]) != raw:
        raise ArchiveError("its directory does not fit its parts")
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        name = ""
    if not _NAME.fullmatch(name):
        raise ArchiveError("it holds a part that torch.save does not write")
    return place, name, Member(start, size, crc), offset


def _widened(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sizes and offset of an entry, from its 64-bit field where they are said to be there."""
    fields: list[bytes] = []
    left = extra
    while left:
        kind, length = struct.unpack_from("<2H", left) if len(left) >= 4 else (0, 1 << 16)
        if length > len(left) - 4:
            raise ArchiveError("its directory is damaged")
        if kind == 1:
            fields.append(left[4 : 4 + length])
        left = left[4 + length :]
    narrow = [value == _SENTINELS[1] for value in values]
    if len(fields) > 1 or (any(narrow) and (not fields or len(fields[0]) < 8 * sum(narrow))):
        raise ArchiveError("its directory is damaged")
    wide = iter(struct.unpack_from(f"<{sum(narrow)}Q", fields[0])) if any(narrow) else iter(())
    size, packed, offset = (next(wide) if is_narrow else value for is_narrow, value in zip(narrow, values, strict=True))
    return size, packed, offset


def _unpack(record: struct.Struct, file: BinaryIO, offset: int) -> tuple[Any, ...]:
    try:
        file.seek(offset)
        return record.unpack(file.read(record.size))
    except (struct.error, OverflowError, ValueError) as error:
        raise ArchiveError("it is cut short") from error
