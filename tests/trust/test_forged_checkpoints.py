"""Checkpoints made to harm whoever loads them, beside those of test_checkpoint_io: archives, sizes, environments."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.test_policy import trained
from tests.forging import NESTED, RUNS_A_COMMAND, WRAPS_WITH_A_COMMAND, Exploit, specification, watched
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.evaluation.checkpoint import evaluate_checkpoint
from tql_lightning.export.observations import sample_observations
from tql_lightning.export.writer import export_checkpoint
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import read_checkpoint, write_checkpoint

Raw = dict[str, Any]
Forge = Callable[[Raw], bytes]


class Sized:
    """Is made by calling something with a size."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return self.kind, (2**40,)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def with_more(**more: Any) -> Forge:
    """A checkpoint that holds something else besides."""
    return lambda raw: saved(raw | more)


def with_setting(**more: Any) -> Forge:
    return lambda raw: saved(raw | {"hyper_parameters": raw["hyper_parameters"] | more})


def with_weights(make: Callable[[torch.Tensor], object]) -> Forge:
    return lambda raw: saved(raw | {"state_dict": {name: make(each) for name, each in raw["state_dict"].items()}})


def of_data(**changes: Any) -> Forge:
    return lambda raw: saved(raw | {"OfflineDataModule": raw["OfflineDataModule"] | changes})


def repacked(change: Callable[[str, bytes], bytes] = lambda _, content: content, compression: int = 0) -> Forge:
    """A checkpoint whose archive has been written anew."""

    def forge(raw: Raw) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(saved(raw))) as archive, zipfile.ZipFile(file, "w", compression) as target:
            for name in archive.namelist():
                target.writestr(name, change(name, archive.read(name)))
        return file.getvalue()

    return forge


def more_elements(name: str, content: bytes) -> bytes:
    """Claims 2**30 elements for the storage of seven."""
    if not name.endswith("data.pkl"):
        return content
    assert content.count(b"K\7t") == 1
    return content.replace(b"K\7t", b"J" + struct.pack("<i", 2**30) + b"t")


def tar(_: Raw) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", "../outside"):
            member = tarfile.TarInfo(name)
            member.size = 9
            archive.addfile(member, io.BytesIO(bytes(9)))
    return file.getvalue()


def twofold(raw: Raw) -> bytes:
    """Thirty lists, each of the one before twice: a thousand million in all."""
    lists: list[Any] = []
    for _ in range(30):
        lists = [lists, lists]
    return with_setting(tau=lists)(raw)


def endless(raw: Raw) -> bytes:
    inside: list[Any] = []
    inside.append(inside)
    return with_setting(tau=inside)(raw)


FORGED: dict[str, tuple[Forge, str]] = {
    "more elements than bytes": (
        lambda raw: repacked(more_elements)(raw | {"seven": torch.zeros(7)}),
        "claims 1073741824 elements of FloatStorage where 28 bytes are",
    ),
    "packed parts": (repacked(compression=zipfile.ZIP_DEFLATED), "packed otherwise than torch.save does"),
    "bytes by their number": (with_more(x=Sized(bytearray)), "it refers to builtins.bytearray"),
    "a tensor by its size": (with_more(x=Sized(torch.FloatTensor)), "it refers to torch.FloatTensor"),
    "a storage by its size": (with_more(x=Sized(torch.FloatStorage)), "it calls torch.FloatStorage"),
    "weights without numbers": (with_weights(lambda each: each.to("meta")), "_rebuild_meta_tensor_no_storage"),
    "sparse weights": (with_weights(lambda each: each.to_sparse()), r"refers to torch\."),
    "a tar archive": (tar, "is no file of torch.save"),
    "a plain pickle": (lambda _: pickle.dumps(Exploit()), "is no file of torch.save"),
    "a pickle of torch's former format": (
        lambda raw: (file := io.BytesIO(), torch.save(raw, file, _use_new_zipfile_serialization=False))[0].getvalue(),
        "is no file of torch.save",
    ),
    "an empty pickle": (
        repacked(lambda name, content: content if "data.pkl" not in name else b"."),
        "damaged",
    ),
    "a pickle that ends too soon": (repacked(lambda _, content: content[:-9]), "damaged, or holds more than weights"),
    "a pickle that names a place far off": (
        repacked(lambda name, content: b"\x80\2Nr\xff\xff\xff\xff." if name.endswith("data.pkl") else content),
        "expected one that tql fit wrote",
    ),
    "a thousand million settings": (twofold, "more than 2,000,000 values"),
    "settings within themselves": (endless, "a value within itself"),
    "a module as environment": (of_data(env_id="antigravity:Env-v0"), "TQL_TRUST=antigravity"),
    "a command as environment": (of_data(env_id=RUNS_A_COMMAND), r"expected module:Class of a gymnasium\.Env"),
    "a command around it": (of_data(env_id=WRAPS_WITH_A_COMMAND), r"of a gymnasium\.Wrapper"),
    "a wrapper that writes": (
        of_data(
            env_id=specification(
                "x:y",
                "Pendulum-v1",
                additional_wrappers=[
                    {
                        "name": "RecordVideo",
                        "entry_point": "gymnasium.wrappers.rendering:RecordVideo",
                        "kwargs": {"video_folder": "executed"},
                    }
                ],
            )
        ),
        r"of a gymnasium\.Wrapper",
    ),
    "a wrapper for an environment": (
        of_data(env_id=specification("gymnasium.wrappers:RecordVideo")),
        r"expected module:Class of a gymnasium\.Env",
    ),
    "a module with effects": (of_data(env_id=specification("this:s")), "TQL_TRUST=this"),
    "deep JSON": (of_data(env_id="{" + NESTED), "JSON of an environment's specification"),
    "an environment that is a number": (of_data(env_id=3), "expected what tql fit says of its data"),
    "bounds that are none": (of_data(action_low="low"), "expected what tql fit says of its data"),
    "data that are a list": (with_more(OfflineDataModule=[1]), "expected what tql fit says of its data"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(("forge", "message"), FORGED.values(), ids=FORGED)
def test_a_forged_checkpoint_is_refused_in_little_memory_and_runs_nothing(
    forge: Forge, message: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "forged.ckpt"
    path.write_bytes(forge(read_checkpoint(whole)))
    with watched(tmp_path), pytest.raises(CheckpointError, match=r"forged\.ckpt: .*" + message):
        load_checkpoint(path)


def test_an_archive_that_was_only_written_anew_loads(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "anew.ckpt"
    path.write_bytes(repacked()(read_checkpoint(whole)))
    assert load_checkpoint(path)[1]["global_step"] == 5


def test_an_environment_that_is_not_made_may_be_any(whole: Path, tmp_path: Path) -> None:
    raw, path = read_checkpoint(whole), tmp_path / "other.ckpt"
    raw["OfflineDataModule"]["env_id"] = "antigravity:Env-v0"
    write_checkpoint(raw, path)
    assert load_checkpoint(path, trusted=True)[1]["global_step"] == 5  # this program's own
    with pytest.raises(CheckpointError, match="name another environment with --env"):
        evaluate_checkpoint(path, 1, 0)
    assert evaluate_checkpoint(path, 1, 0, env_id="Pendulum-v1")["env_id"] == "Pendulum-v1"
    assert sample_observations(raw, 2, 3)[1] == "standard normal numbers"
    with watched(tmp_path):
        export_checkpoint(path, tmp_path.parent / "exported", "torch")
