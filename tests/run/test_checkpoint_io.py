"""Checkpoints are written atomically; damaged or forged ones are refused before anything is built from them."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from tests.toy import fit, toy_model
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.algorithms.tql import TQL
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import WholeCheckpointIO, read_checkpoint, write_checkpoint
from tql_lightning.trust.class_paths import check_class_paths


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run's checkpoint, in a folder with a temporary file of an interrupted write."""
    folder = tmp_path_factory.mktemp("run")
    (folder / ".last.ckpt.abc.part").write_bytes(b"half of a checkpoint")
    (folder / ".mine.txt.part").write_bytes(b"somebody's")
    callbacks = [LastCheckpoint(str(folder), 5), ModelCheckpoint(folder, "each_{step}", every_n_train_steps=5)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Checkpoint directory")  # holds what is to be cleaned
        fit(folder, toy_model(), 10, callbacks, plugins=WholeCheckpointIO())
    return folder / "last.ckpt"


def test_the_one_before_stays_and_only_what_lightning_deletes_is_gone(checkpoint: Path) -> None:
    updates = {path.name: read_checkpoint(path)["global_step"] for path in checkpoint.parent.glob("*.ckpt")}
    assert updates == {"last.ckpt": 10, "previous.ckpt": 5, "each_step=10.ckpt": 10}
    assert [path.name for path in checkpoint.parent.glob(".*")] == [".mine.txt.part"]


def test_the_one_before_stays_also_at_the_first_write_of_a_continued_run(tmp_path: Path) -> None:
    for updates, continued in ((10, None), (15, tmp_path / "last.ckpt")):
        fit(tmp_path, toy_model(), updates, [LastCheckpoint(str(tmp_path), 5)], continued, plugins=WholeCheckpointIO())
    updates = {path.name: read_checkpoint(path)["global_step"] for path in tmp_path.glob("*.ckpt")}
    assert updates == {"last.ckpt": 15, "previous.ckpt": 10}


def test_a_model_that_never_trained_is_saved_and_loaded(tmp_path: Path) -> None:
    model, path = toy_model(), tmp_path / "fresh.ckpt"
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", devices=1)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    loaded = load_checkpoint(path)[0].state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_checkpoints_that_a_thread_writes_are_whole_too(tmp_path: Path) -> None:
    plugin = AsyncCheckpointIO(WholeCheckpointIO())
    fit(tmp_path, toy_model(), 15, [LastCheckpoint(str(tmp_path), 5)], plugins=plugin)
    assert (tmp_path / "last.ckpt").read_bytes()[-75:].startswith(b"tql-sha256:")
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 15
    assert (tmp_path / "previous.ckpt").exists()
    assert list(tmp_path.glob(".*")) == []


def test_a_new_name_is_flushed_to_disk_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    flush = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_checkpoint({"state_dict": {}, "global_step": 0}, tmp_path / "new" / "last.ckpt")
    file, folder = flushed
    assert file.endswith(".part")
    assert folder == str(tmp_path / "new")


def test_plain_torch_and_lightning_read_what_carries_a_checksum(checkpoint: Path) -> None:
    raw = torch.load(checkpoint, weights_only=True)
    model = TQL.load_from_checkpoint(checkpoint, weights_only=True)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in raw["state_dict"].items())


@pytest.mark.parametrize("checksum", [True, False])
def test_a_flipped_byte_anywhere_is_noticed(checksum: bool, tmp_path: Path) -> None:
    path = tmp_path / "small.ckpt"
    content = {"state_dict": {"weight": torch.arange(100.0)}, "global_step": 3}
    write_checkpoint(content, path) if checksum else torch.save(content, path)
    whole = path.read_bytes()
    assert torch.equal(read_checkpoint(path)["state_dict"]["weight"], torch.arange(100.0))
    weight = whole.index(torch.arange(100.0).numpy().tobytes())
    places = range(0, len(whole), 7) if checksum else range(weight, weight + 400, 7)
    for place in [*places, len(whole) - 1] if checksum else places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"small\.ckpt: damaged"):
            read_checkpoint(path)


def test_a_file_cut_short_anywhere_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "short.ckpt", checkpoint.read_bytes()
    for length in [*range(0, len(whole), len(whole) // 20), len(whole) - 1, len(whole) - 80]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"short\.ckpt: damaged"):
            read_checkpoint(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(read_checkpoint(checkpoint), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        WholeCheckpointIO().save_checkpoint({"state_dict": lambda: None, "global_step": 0}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_pickle_cannot_be_asked_for(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="weights only"):
        WholeCheckpointIO().load_checkpoint(checkpoint, weights_only=False)


class _Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import tests; tests.executed = True",)


class _Record:
    """No part of a network."""


def _settings(**changes: Any) -> Any:
    return lambda raw: raw | {"hyper_parameters": raw["hyper_parameters"] | changes}


def _critic(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


def _weights(make: Any) -> Any:
    return lambda raw: raw | {"state_dict": {name: make(each) for name, each in raw["state_dict"].items()}}


TRANSFORMER = "tql_lightning.nn.critic.TransformerCritic"
FORGED = {
    "code as weights": (lambda raw: raw | {"state_dict": _Exploit()}, "holds more than weights"),
    "code as a setting": (_settings(tau=_Exploit()), "holds more than weights"),
    "code beside it": (lambda raw: raw | {"note": _Exploit()}, "holds more than weights"),
    "another instantiator": (_settings(_instantiator="builtins.exec"), r"to be made by '?builtins\.exec"),
    "an instantiator that is none": (_settings(_instantiator=["os.system"]), "to be made by"),
    "another model's class": (_settings(_class_path="os.system"), "unknown settings _class_path"),
    "a function as critic": (_settings(critic=_critic("os.system", command="true")), "subclass of Critic"),
    "a class that is no critic": (_settings(critic=_critic("subprocess.Popen", args="true")), "subclass of Critic"),
    "a network that is no critic": (_settings(critic=_critic("torch.nn.Identity")), "subclass of Critic"),
    "a critic as policy": (_settings(policy=_critic(TRANSFORMER)), "subclass of FlowPolicy"),
    "a path instead of a class": (_settings(critic="os.system"), "expected a class path with its arguments"),
    "a class without a path": (_settings(critic={"init_args": {}}), "expected a class path with its arguments"),
    "a module with effects": (_settings(critic=_critic("antigravity.Critic")), r"TQL_TRUST=antigravity"),
    "a module with effects below": (_settings(critic=_critic(TRANSFORMER, norm=_critic("this.s"))), "TQL_TRUST=this"),
    "a function below": (_settings(critic=_critic(TRANSFORMER, norm=_critic("os.system"))), "subclass of Module"),
    "a short form below": (_settings(critic=_critic(TRANSFORMER, norm="os.system")), "subclass of Module"),
    "hidden in other arguments": (
        _settings(critic=_critic(TRANSFORMER) | {"dict_kwargs": {"x": _critic(f"{__name__}._Record")}}),
        "subclass of Module",
    ),
    "in a setting that is a number": (_settings(tau=_critic("antigravity.fly")), r"TQL_TRUST=antigravity"),
    "other number types": (_weights(lambda each: each.to(torch.complex64)), "no tensor of real numbers"),
    "huge declared shapes": (_weights(lambda _: torch.zeros(1).expand(2**20, 2**20)), "1099511627776 elements in"),
    "weights of no kind": (_weights(lambda _: "weights"), "is no tensor of real numbers"),
    "no settings": (lambda raw: {"state_dict": raw["state_dict"], "global_step": 1}, "without settings"),
    "no dictionary": (lambda raw: [raw], "expected one that tql fit wrote"),
}


@pytest.mark.parametrize("checksum", [True, False], ids=["with checksum", "without"])
@pytest.mark.parametrize(("forge", "message"), FORGED.values(), ids=FORGED)
def test_a_forged_checkpoint_is_refused_and_runs_nothing(
    forge: Any, message: str, checksum: bool, checkpoint: Path, tmp_path: Path
) -> None:
    path, forged = tmp_path / "forged.ckpt", forge(read_checkpoint(checkpoint))
    write_checkpoint(forged, path) if checksum else torch.save(forged, path)
    with pytest.raises(CheckpointError, match=r"forged\.ckpt: .*" + message):
        load_checkpoint(path)
    assert not {"antigravity", "this"} & sys.modules.keys()
    assert not hasattr(sys.modules["tests"], "executed")


def test_a_module_in_the_working_folder_must_define_the_class_or_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import sys\nsys.ran_{0} = True\nfrom tql_lightning.nn.mlp import MLP\n"
    (tmp_path / "a_script.py").write_text(source.format("script"))
    critic = "from tql_lightning import MLPCritic\nclass Mine(MLPCritic): ...\n"
    (tmp_path / "my_critics.py").write_text(critic)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="TQL_TRUST=a_script"):
        check_class_paths({"critic": _critic("a_script.Mine")}, TQL)
    assert not hasattr(sys, "ran_script")
    check_class_paths({"critic": _critic("my_critics.Mine")}, TQL)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "installed_critics.py").write_text(critic)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="TQL_TRUST=installed_critics"):
        check_class_paths({"critic": _critic("installed_critics.Mine")}, TQL)
    monkeypatch.setenv("TQL_TRUST", "other, installed_critics")
    check_class_paths({"critic": _critic("installed_critics.Mine")}, TQL)


def test_text_that_looks_like_a_class_is_text_unless_there_is_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"critic": _critic(TRANSFORMER, file="weights.pt")}
    check_class_paths(settings, TQL)
    (tmp_path / "weights").mkdir()  # may hold modules, and runs nothing by itself
    check_class_paths(settings, TQL)
    (tmp_path / "weights" / "pt.py").write_text("import sys\nsys.ran_weights = True\n")
    with pytest.raises(ValueError, match="TQL_TRUST=weights"):
        check_class_paths({"critic": _critic(TRANSFORMER, file="weights.pt.Class")}, TQL)
    with pytest.raises(ValueError, match=r"nowhere\.Critic is not there; install nowhere, or change to the folder"):
        check_class_paths({"critic": _critic("nowhere.Critic")}, TQL)
    assert not hasattr(sys, "ran_weights")
