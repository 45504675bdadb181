"""Strategies of hypothesis for the files of each format."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

import h5py
import numpy as np
import yaml
from hypothesis import strategies as st

from tests.data.test_d4rl import columns
from tests.data.test_transitions import arrays
from tql_lightning.cli.configs import packaged_configs

SHAPES = [
    (),
    (0,),
    (5,),
    (7,),
    (5, 1),
    (7, 2),
    (5, 2),
    (1, 1),
    (10**6, 0),
    (10**12,),
    (2**62, 4),
    (2**31, 2),
    (5, 2, 2),
]
TYPES = ["<f4", "<f8", "<f2", ">f8", "|b1", "<i8", "|u1", "<c16", "<U3", "|S0", "<U0", "|V8", "<M8[s]", "|O", "<f16"]
SIZES = [b"\0", b"\xff", b"\x80", *(struct.pack(f"<{kind}", value) for kind, value in (("I", 2**31 - 1), ("Q", 2**63)))]


@st.composite
def changed(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file's bytes with some overwritten, taken out, doubled or cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64]))
        kind = draw(st.sampled_from(["flip", "write", "take out", "double", "cut"]))
        if kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "write":
            new = draw(st.sampled_from(SIZES) | st.binary(min_size=1, max_size=8))
            content[place : place + len(new)] = new
        elif kind == "take out":
            del content[place : place + length]
        elif kind == "double":
            content[place:place] = content[place : place + length]
        elif draw(st.booleans()):
            del content[place:]
    return bytes(content)


def npz_bytes(compressed: bool = False, **changes: Any) -> bytes:
    """Our own file, whole."""
    values = arrays(env_id="Pendulum-v1", action_low=-1.0, masks=np.array([1.0, 1, 1, 1, 0]), **changes)
    del values["name"]
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **values)
    return file.getvalue()


@st.composite
def built_npz(draw: st.DrawFn) -> bytes:
    """An archive of members with names, headers and contents that do not belong together."""
    names = ["observations", "actions", "rewards", "terminations", "truncations", "next_observations", "masks"]
    names += ["env_id", "action_low", "actions_scaled", "reference_scores", "../../outside", "x" * 300, ""]
    whole = dict(np.load(io.BytesIO(npz_bytes())))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from([0, 8, 12, 14]))) as archive:
        for name in [*names[:5], *draw(st.lists(st.sampled_from(names[5:]), max_size=4, unique=True))]:
            member = io.BytesIO()
            if name in whole and draw(st.integers(0, 3)):
                np.save(member, whole[name])
                content = member.getvalue()
            else:
                shape = draw(st.sampled_from(SHAPES))
                shape = draw(st.sampled_from([shape, (*shape, -1), "x", (1.5,), ((((2,),),),)]))
                header = {"descr": draw(st.sampled_from(TYPES)), "fortran_order": draw(st.booleans()), "shape": shape}
                text = draw(st.sampled_from([repr(header), "-" * 3000 + "1", "(" * 900, "{}", repr(header)[:-9]]))
                version = draw(st.sampled_from([(1, 0), (1, 0), (2, 0), (3, 0), (9, 9)]))
                size = struct.pack("<H" if version == (1, 0) else "<I", len(text) + 1)
                content = b"\x93NUMPY" + bytes(version) + size + text.encode() + b"\n"
                content += bytes(draw(st.sampled_from([0, 8, 40, 80, 1000])))
            archive.writestr(f"{name}.npy" if draw(st.integers(0, 9)) else name or "x", content)
    return file.getvalue()


def hdf5_bytes(**settings: Any) -> bytes:
    """A file of D4RL's layout, whole."""
    file = io.BytesIO()
    with h5py.File(file, "w", **{key: value for key, value in settings.items() if key == "libver"}) as opened:
        for name, values in columns().items():
            options = (
                {"chunks": values.shape, "compression": settings["compression"]} if "compression" in settings else {}
            )
            opened.create_dataset(name, data=values, **options)
    return file.getvalue()


@st.composite
def built_hdf5(draw: st.DrawFn) -> bytes:
    """A file whose arrays are of strange types, lie elsewhere, or nowhere."""
    file = io.BytesIO()
    strange: list[Any] = ["f8", ">f4", "i1", "u8", "f2", "c8", "S3", h5py.string_dtype(), h5py.vlen_dtype("f4")]
    strange += [h5py.ref_dtype, h5py.enum_dtype({"A": 0}), np.dtype([("x", "f4")]), np.dtype(("f4", (3,))), "bool"]
    with h5py.File(file, "w") as opened:
        for name, values in columns().items():
            kind = draw(
                st.sampled_from(["whole"] * 4 + ["strange", "soft", "external", "virtual", "raw", "group", "none"])
            )
            if kind == "whole":
                opened[name] = values
            elif kind == "strange":
                shape = draw(st.sampled_from([each for each in SHAPES if np.prod(each, dtype=float) < 2**60]))
                options: dict[str, Any] = {}
                if shape and 0 not in shape and draw(st.booleans()):
                    options = {"chunks": tuple(min(size, 2**16) for size in shape), "compression": "gzip"}
                opened.create_dataset(name, shape, draw(st.sampled_from(strange)), fillvalue=None, **options)
            elif kind == "soft":
                opened[name] = h5py.SoftLink(draw(st.sampled_from(["/actions", f"/{name}", "/nowhere", "."])))
            elif kind == "external":
                opened[name] = h5py.ExternalLink("/etc/passwd", "/x")
            elif kind == "virtual":
                layout = h5py.VirtualLayout(values.shape, values.dtype)
                layout[...] = h5py.VirtualSource("elsewhere.hdf5", "x", values.shape)
                opened.create_virtual_dataset(name, layout)
            elif kind == "raw":
                external = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
                opened.create_dataset(name, values.shape, values.dtype, external=external)
            elif kind == "group":
                opened.create_group(name)[name] = opened["/"]
            elif draw(st.booleans()):
                opened[name] = h5py.Empty("f4")
    return file.getvalue()


CONFIG = packaged_configs()["quickstart"].read_text()


@st.composite
def built_config(draw: st.DrawFn) -> bytes:
    """A configuration with a value of another kind somewhere, or text that YAML makes much of."""
    values = [
        None,
        "",
        -1,
        10**400,
        1e400,
        float("nan"),
        [],
        {},
        [[]],
        {"": ""},
        "os.system",
        "${trainer}",
        "${",
        "x: y",
    ]
    values += [{"class_path": "os.system", "init_args": {"command": "true"}}, {"class_path": 3}, {"class_path": "a..b"}]
    values += [
        "${oc.env:NOT_THERE}",
        "${oc.decode:[}",
        "${x.y}",
        True,
        "2001-99-99",
        "\ud7ff\u2028",
        "tql_lightning.TQL",
    ]
    odd = ["!!python/object/apply:os.system [true]", "&a [*a]", "[" * 200 + "]" * 200, "? [a]\n: b", "!!binary x", "*b"]
    config = yaml.safe_load(CONFIG)
    for _ in range(draw(st.integers(1, 2))):
        place: Any = config
        for _ in range(draw(st.integers(0, 5))):
            inside = list(place.values()) if isinstance(place, dict) else place if isinstance(place, list) else []
            inside = [each for each in inside if isinstance(each, dict | list) and each]
            place = draw(st.sampled_from(inside)) if inside else place
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        place[draw(st.sampled_from(keys))] = draw(st.sampled_from(values))
    text = yaml.safe_dump(config)
    if not draw(st.integers(0, 3)):
        text = f"{draw(st.sampled_from(['model', 'data', 'x', 'trainer']))}: {draw(st.sampled_from(odd))}\n"
    return text.encode()


INSTRUCTIONS = [
    b"N",
    b"\x88",
    b")",
    b"]",
    b"}",
    b"(",
    b"t",
    b"a",
    b"e",
    b"s",
    b"u",
    b"\x85",
    b"\x86",
    b"\x87",
    b"R",
    b"b",
    b"Q",
]
INSTRUCTIONS += [
    b"q\0",
    b"h\0",
    b"q\1",
    b"h\1",
    b"K\1",
    b"K\xff",
    b"J\xff\xff\xff\x7f",
    b"\x8a\1\xff",
    b"X\2\0\0\0ab",
    b"0",
    b"\x81",
]
INSTRUCTIONS += [
    b"X\x0c\0\0\0global_step",
    b"X\x0a\0\0\0state_dict",
    b"X\7\0\0\0storage",
    b"X\1\0\0\0000",
    b"X\3\0\0\0cpu",
]
INSTRUCTIONS += [
    b"\x96" + struct.pack("<Q", 1 << 32),
    b"\x8e" + struct.pack("<Q", 1 << 62),
    b"\x8b\xff\xff\xff\x7f",
    b"G" + bytes(8),
]
INSTRUCTIONS += [
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"cos\nsystem\n",
]
INSTRUCTIONS += [b"c__builtin__\nset\n", b"ctorch\nSize\n", b"c_codecs\nencode\n", b"c__builtin__\nbytearray\n"]


@st.composite
def built_checkpoint(draw: st.DrawFn) -> bytes:
    """An archive of a pickle whose instructions do not belong together, sometimes with another archive around it."""
    pickled = b"\x80\2" + b"".join(draw(st.lists(st.sampled_from(INSTRUCTIONS), max_size=60))) + b"."
    for _ in range(draw(st.sampled_from([0, 0, 40]))):
        pickled = pickled[:-1] + b"q\2h\2\x86."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from([0, 0, 0, 8]))) as target:
        target.writestr("archive/data.pkl", pickled)
        target.writestr(
            draw(st.sampled_from(["archive/data/0", "archive/DATA.pkl", "other/data/0", "archive/../x"])), bytes(8)
        )
    whole = file.getvalue()
    around = [
        whole,
        whole,
        b"#" + whole,
        whole + b"x",
        whole + whole,
        whole[:-2] + struct.pack("<H", len(whole)) + whole,
    ]
    return draw(st.sampled_from(around))


@st.composite
def built_policy(draw: st.DrawFn, metadata: dict[str, Any]) -> bytes:
    """Metadata of an exported policy with values of other kinds and sizes."""
    odd = [None, -1, 10**400, 1e400, [], [1] * 60_000, {}, [[[8]]], "\x1b]0;x\x07", "x" * 100_000, True, [10**9] * 3]
    changes = draw(st.dictionaries(st.sampled_from(sorted(metadata)), st.sampled_from(odd), max_size=3))
    return json.dumps(metadata | changes).encode()
