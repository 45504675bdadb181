"""Files of ``torch.save`` made to harm the check itself, or to look to it otherwise than to torch."""

from __future__ import annotations

import io
import pickle
import struct
import time
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forging import watched
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import read_checkpoint, write_checkpoint
from tql_lightning.trust.archive import ArchiveError, is_intact, read_archive
from tql_lightning.trust.pickled import TorchFileError
from tql_lightning.trust.torch_file import check_torch_file

SECONDS = 10.0  # that refusing a small file may take where other programs wait for the same cores
DATA = {"state_dict": {"weight": torch.arange(6.0).reshape(2, 3)}, "global_step": 3}


def saved(content: object = DATA) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def archive(pickled: bytes, **parts: bytes) -> bytes:
    """An archive of a pickle and storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("archive/data.pkl", pickled)
        target.writestr("archive/version", b"3\n")
        for name, content in parts.items():
            target.writestr(f"archive/data/{name}", content)
    return file.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def storage(key: str, count: int) -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(key: str, count: int, shape: bytes, strides: bytes, offset: int = 0) -> bytes:
    made_from = storage(key, count) + number(offset) + shape + strides + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + made_from + b"tR"


def doubled(first: bytes, times: int, join: bytes) -> bytes:
    """A value, joined with itself, and the outcome again with itself, so many times."""
    return first + b"".join(b"q\0h\0" + join for _ in range(times))


ONE = b"K\1"
PICKLES: dict[str, tuple[bytes, str]] = {
    "four gigabytes by their number": (b"\x96" + struct.pack("<Q", 1 << 32) + b"x.", "damaged"),
    "eight exabytes by their number": (b"\x8e" + struct.pack("<Q", 1 << 63) + b"x.", "damaged"),
    "text longer than the file": (b"X\xff\xff\xff\x7fx.", "damaged"),
    "a number of half a gigabyte": (b"\x8b\xff\xff\xff\x1fx.", "damaged"),
    "a number of 400 digits": (number(10**400) + b".", "a number of more than 32 bytes"),
    "a decimal number": (b"I" + b"9" * 4000 + b"\n.", "holds INT"),
    "a decimal number without end": (b"L" + b"9" * 100_000 + b"L\n.", "damaged"),
    "an instance": (b"(i__main__\nX\n.", "holds INST"),
    "an extension": (b"\x82\1.", "holds EXT1"),
    "a name from the stack": (text("os") + text("system") + b"\x93.", "holds STACK_GLOBAL"),
    "a frame": (b"\x95" + struct.pack("<Q", 1 << 40) + b"N.", "damaged|holds FRAME"),
    "a value that is dropped": (b"NN0.", "holds POP"),
    "tuples whose hash never ends": (b"}" + doubled(b")", 60, b"\x86") + b"Ns.", "neither text nor whole numbers"),
    "tuples in tuples": (b"]" + b")" + b"\x85" * 100_000 + b"a.", "more than 64 deep"),
    "lists in lists": (b"]" * 100_000 + b"a" * 99_999 + b".", "more than 64 deep"),
    "lists twofold": (b"]" + b"q\0]h\0ah\0a" * 60 + b"t.", "damaged"),
    "a list within itself": (b"]q\0h\0a.", "a value within itself"),
    "a dict as its own value": (b"}q\0" + text("x") + b"h\0s.", "a value within itself"),
    "a set of tuples whose hash never ends": (
        b"c__builtin__\nset\n]" + doubled(b")", 60, b"\x86") + b"a\x85R.",
        "neither text nor whole numbers",
    ),
    "keys of one hash": (
        b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(10, 200_000)) + b"u.",
        "keys that are neither text nor whole numbers",
    ),
    "long keys of one hash": (
        b"}(" + b"".join(b"(" + ONE * 99 + number(k * (2**61 - 1)) + b"tN" for k in range(10, 5_000)) + b"u.",
        "keys that are neither text nor whole numbers",
    ),
    "a set of keys of one hash": (
        b"c__builtin__\nset\n](" + b"".join(number(k * (2**61 - 1)) for k in range(10, 200_000)) + b"e\x85R.",
        "keys that are neither text nor whole numbers",
    ),
    "an object as key": (b"}]Ns.", "keys that are neither text nor whole numbers"),
    "values left over": (b"NN.", "leaves values over"),
    "a mark left over": (b"(N.", "leaves values over"),
    "too few values": (b"\x86.", "takes more values than there are"),
    "values from before a mark": (b"NN(\x86.", "takes more values than there are"),
    "a mark that is none": (b"Nt.", "damaged"),
    "a place that holds nothing": (b"h\5.", "damaged"),
    "more after the end": (b"N.N.", "followed by more"),
    "no end": (b"N", "damaged"),
    "protocol 4": (b"\x80\4N.", "another protocol"),
    "a second beginning": (b"\x80\2N.", "another protocol"),
    "a command": (b"cposix\nsystem\n" + text("true") + b"\x85R.", "refers to posix.system"),
    "a name of a million letters": (b"c" + b"x" * 10**6 + b"\ny\n.", r"refers to x{80}\.\.\."),
    "a name with control sequences": (b"c\x1b]0;own\x07\nx\n.", r"refers to \\x1b\]0;own\\x07"),
    "a call of a value": (b"N)R.", "calls what is no name"),
    "a call of a type": (b"ctorch\nFloatStorage\n" + number(2**40) + b"\x85R.", "calls torch.FloatStorage"),
    "a new object of a type": (b"ctorch\nFloatStorage\n)\x81.", "calls torch.FloatStorage"),
    "an encoding by its name": (
        b"c_codecs\nencode\n" + text("x") + text("antigravity") + b"\x86R.",
        "encodes text in another way",
    ),
    "a tensor larger than its storage": (
        tensor("0", 4, number(2**34) + b"\x85", ONE + b"\x85") + b".",
        "17179869184 elements in a storage of 4",
    ),
    "a tensor far behind its storage": (
        tensor("0", 4, ONE + b"\x85", ONE + b"\x85", offset=2**40) + b".",
        "1 elements in a storage of 4",
    ),
    "one number repeated for ever": (
        tensor("0", 4, number(2**40) + b"\x85", b"K\0\x85") + b".",
        "1099511627776 elements in a storage of 4",
    ),
    "a size below nothing": (tensor("0", 4, number(-5) + b"\x85", ONE + b"\x85") + b".", "a tensor of no shape"),
    "dimensions without end": (
        tensor("0", 4, b"(" + ONE * 1000 + b"t", b"(" + ONE * 1000 + b"t") + b".",
        "a tensor of no shape",
    ),
    "small tensors without end": (
        b"]" + b"(" + b"".join(tensor("0", 4, b"J\x40\x42\x0f\0\x85", b"K\0\x85") for _ in range(50)) + b"e.",
        "its tensors show 50000000 elements of 16 bytes",
    ),
    "a storage that is not there": (storage("7", 4) + b".", "claims 4 elements of FloatStorage where None bytes"),
    "a storage of another size": (storage("0", 5) + b".", "claims 5 elements of FloatStorage where 16 bytes"),
    "a storage of a name from elsewhere": (
        b"(" + text("storage") + b"ccollections\nOrderedDict\n" + text("0") + text("cpu") + number(4) + b"tQ.",
        "claims 4 elements of OrderedDict",
    ),
    "a storage as text": (text("storage") + b"Q.", "refers to what is no storage"),
    "a tensor that is changed": (
        tensor("0", 4, b"K\4\x85", ONE + b"\x85") + b"(" + storage("0", 4) + number(2**40) + b"tb.",
        "changes what is complete",
    ),
    "a parameter of no tensor": (
        b"ctorch._utils\n_rebuild_parameter\nN\x85R.",
        "a parameter of what is no tensor",
    ),
}


@pytest.mark.parametrize(("pickled", "message"), PICKLES.values(), ids=PICKLES)
def test_a_forged_pickle_is_refused_in_little_time_and_memory(pickled: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "forged.ckpt"
    begin = b"" if pickled.startswith(b"\x80\4") else b"\x80\2"
    path.write_bytes(archive(begin + pickled, **{"0": bytes(16)}))
    started = time.process_time()
    with watched(tmp_path), pytest.raises(TorchFileError, match=message) as refused:
        check_torch_file(path)
    assert time.process_time() - started < SECONDS
    assert len(str(refused.value)) < 300
    with watched(tmp_path), pytest.raises(CheckpointError):
        read_checkpoint(path)


def appended(more: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole + more


def prefixed(more: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: more + whole


def commented(comment: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:-2] + struct.pack("<H", len(comment)) + comment


def hidden_in_comment(whole: bytes) -> bytes:
    """A second archive in the comment of the first."""
    other = archive(b"\x80\2N.")
    return commented(other)(whole)


def moved(whole: bytes) -> bytes:
    """An archive whose offsets count from the end of another one before it."""
    return archive(b"\x80\2N.") + whole


def shifted(whole: bytes) -> bytes:
    """Parts twice, and a directory that fits the second ones where a program adds what lies before, else the first."""
    end = whole.rindex(b"PK\5\6")
    directory = struct.unpack_from("<L", whole, end + 16)[0]
    return whole[:directory] + whole


def rewritten(change: Callable[[zipfile.ZipFile], None]) -> Callable[[bytes], bytes]:
    """An archive with something more in it."""

    def forge(whole: bytes) -> bytes:
        file = io.BytesIO(whole)
        with zipfile.ZipFile(file, "a") as target:
            change(target)
        return file.getvalue()

    return forge


def patched(signature: bytes, offset: int, new: bytes) -> Callable[[bytes], bytes]:
    """Other bytes at an offset within the last record of a signature."""

    def forge(whole: bytes) -> bytes:
        place = whole.rindex(signature) + offset
        return whole[:place] + new + whole[place + len(new) :]

    return forge


PLAIN = archive(pickle.dumps({"state_dict": {}, "global_step": 1}, protocol=2))
ARCHIVES: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "something before it": (PLAIN, prefixed(b"#!/bin/sh\n")),
    "another archive before it": (PLAIN, moved),
    "parts twice": (PLAIN, shifted),
    "something after it": (PLAIN, appended(b"x")),
    "another archive after it": (PLAIN, lambda whole: whole + archive(b"\x80\2N.")),
    "another archive in its comment": (PLAIN, hidden_in_comment),
    "an end in its comment": (PLAIN, commented(b"PK\5\6" + bytes(18))),
    "a comment without a checksum": (PLAIN, commented(b"hello")),
    "a longer comment than there is": (PLAIN, patched(b"PK\5\6", 20, b"\xff\0")),
    "another disk": (PLAIN, patched(b"PK\5\6", 4, b"\1\0")),
    "fewer entries": (PLAIN, patched(b"PK\5\6", 8, b"\1\0\1\0")),
    "entries beyond the directory": (PLAIN, patched(b"PK\5\6", 8, b"\xff\0\xff\0")),
    "a directory elsewhere": (PLAIN, patched(b"PK\5\6", 16, b"\0\0\0\0")),
    "a 64-bit end that differs": (saved(), patched(b"PK\6\6", 24, b"\1" + bytes(7) + b"\1" + bytes(7))),
    "a 64-bit end elsewhere": (saved(), patched(b"PK\6\7", 8, bytes(8))),
    "a 64-bit end of another length": (saved(), patched(b"PK\6\6", 4, b"\xff")),
    "a narrow end that differs": (saved(), patched(b"PK\5\6", 12, b"\1\0\0\0")),
    "another name in the part": (PLAIN, lambda whole: whole.replace(b"archive/version", b"archive/versiom", 1)),
    "packed parts": (PLAIN, patched(b"PK\1\2", 10, b"\x08\0")),
    "an encrypted part": (PLAIN, patched(b"PK\1\2", 8, b"\1\0")),
    "a part at another's place": (PLAIN, patched(b"PK\1\2", 42, bytes(4))),
    "a part behind the file": (PLAIN, patched(b"PK\1\2", 42, b"\xff\xff\xff\x7f")),
    "a part into the directory": (PLAIN, patched(b"PK\1\2", 20, b"\xff\0\0\0\xff\0\0\0")),
    "a part of 64 bits without them": (PLAIN, patched(b"PK\1\2", 20, b"\xff" * 8)),
    "a part whose name differs in case": (
        PLAIN,
        rewritten(lambda each: each.writestr("Archive/data.pkl", b"\x80\2N.")),
    ),
    "a second pickle": (PLAIN, rewritten(lambda each: each.writestr("other/data.pkl", b"\x80\2N."))),
    "a path": (PLAIN, rewritten(lambda each: each.writestr("archive/../../outside", b"x"))),
    "a part of TorchScript": (PLAIN, rewritten(lambda each: each.writestr("archive/constants.pkl", b"x"))),
    "nothing": (PLAIN, lambda _: b""),
    "an end alone": (PLAIN, lambda _: b"PK\5\6" + bytes(18)),
    "the middle cut out": (saved(), lambda whole: whole[:400] + whole[500:]),
}


@pytest.mark.parametrize(("whole", "forge"), ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_of_two_readings_is_refused(whole: bytes, forge: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "forged.ckpt"
    path.write_bytes(whole)
    assert "global_step" in read_checkpoint(path)
    path.write_bytes(forge(whole))
    with watched(tmp_path), pytest.raises(CheckpointError, match=r"forged\.ckpt: damaged") as refused:
        read_checkpoint(path)
    assert len(str(refused.value)) < 300


def test_more_parts_than_the_directory_lists_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "forged.ckpt"
    with zipfile.ZipFile(path, "w") as target:
        for key in range(1000):
            target.writestr(f"archive/data/{key}", b"")
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\5\6")
    struct.pack_into("<2H", content, end + 8, 65535, 65535)
    path.write_bytes(content)
    with path.open("rb") as file, pytest.raises(ArchiveError, match="its directory is not where its end says"):
        read_archive(file)


def test_whatever_torch_saves_of_plain_data_and_tensors_is_accepted(tmp_path: Path) -> None:
    numbers = torch.arange(12.0)
    network = torch.nn.Linear(2, 2)
    content = {
        "state_dict": network.state_dict(),
        "parameter": network.weight,
        "optimizer": torch.optim.AdamW(network.parameters()).state_dict(),
        "global_step": 3,
        "views": [numbers[3:], numbers.reshape(3, 4).T, numbers[::2], numbers[:0], torch.zeros(()), torch.ones(1)],
        "expanded": torch.ones(1).expand(1000, 10),
        "types": [numbers.to(kind) for kind in (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint16)],
        "complex": torch.complex(numbers, numbers),
        "generator": torch.Generator().get_state(),
        "of several": (1, -(2**40), 2**127, 1.5, None, True, "text", b"bytes", complex(1, 2), float("nan")),
        "sets": [{1, 2}, set(), {"a"}, {(1, "b")}],
        "others": [OrderedDict(a=1), OrderedDict(), Counter("aab"), torch.Size([2, 3]), torch.device("cpu")],
        "dtype": torch.float32,
        (1, "a"): {2: 3, None: 4, 1.5: 5},
        "shared": [numbers] * 5,
        "deep": [[[[[[[[1]]]]]]]],
    }
    path = tmp_path / "whole.ckpt"
    write_checkpoint(content, path)
    held = check_torch_file(path)
    assert held >= numbers.nbytes
    raw = read_checkpoint(path)
    assert raw["of several"][:3] == (1, -(2**40), 2**127)
    assert raw[(1, "a")] == content[(1, "a")]
    assert all(torch.equal(a, b) for a, b in zip(raw["views"], content["views"], strict=True))
    torch.save(content, path)
    assert read_checkpoint(path)["sets"] == content["sets"]


class Mine:
    """A class of a user's, which torch is told to load."""

    def __init__(self) -> None:
        self.kept = [1, 2]


def test_what_the_user_lets_torch_load_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mine.ckpt"
    write_checkpoint(DATA | {"mine": Mine()}, path)
    with pytest.raises(CheckpointError, match=r"refers to tests\.trust\.test_torch_file\.Mine"):
        read_checkpoint(path)
    with torch.serialization.safe_globals([Mine]):
        assert read_checkpoint(path)["mine"].kept == [1, 2]


def test_an_archive_is_read_as_zipfile_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "whole.ckpt"
    for content in (saved(), PLAIN):
        path.write_bytes(content)
        with path.open("rb") as file, zipfile.ZipFile(path) as theirs:
            ours = read_archive(file)
            assert [f"archive/{name}" for name in ours.members] == theirs.namelist()
            for name, member in ours.members.items():
                part = content[member.start : member.start + member.size]
                assert part == theirs.read(f"archive/{name}")
                assert zlib.crc32(part) == member.crc
            assert is_intact(file, ours)


def test_a_long_list_is_looked_at_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "long.ckpt"
    write_checkpoint(DATA | {"history": list(range(1_000_000))}, path)
    started = time.process_time()
    check_torch_file(path)
    assert time.process_time() - started < SECONDS
    write_checkpoint(DATA | {"history": list(range(2_000_000))}, path)
    with pytest.raises(CheckpointError, match="holds more than 2,000,000 values"):
        read_checkpoint(path)


def values(count: int) -> dict[str, Any]:
    return {f"layer_{index}.weight": torch.zeros(1) for index in range(count)}


def test_a_model_of_many_tensors_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "many.ckpt"
    write_checkpoint({"state_dict": values(5000), "global_step": 1}, path)
    assert len(read_checkpoint(path)["state_dict"]) == 5000
