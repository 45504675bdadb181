"""Checkpoints whose settings lie, or lead, where the check of ``hyper_parameters`` does not look."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command_line import TINY, call_tql
from tests.export.test_policy import trained
from tests.forging import watched
from tests.marks import slow_after
from tests.toy import fit, toy_model
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.evaluation.background import EvaluationJob
from tql_lightning.export.writer import export_checkpoint
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import WholeCheckpointIO, read_checkpoint
from tql_lightning.training.resuming import newest_whole

Change = Callable[[dict[str, Any]], object]

RUNS = "strangers_part"  # a module of the working folder that is none of those a checkpoint may name
FLY = {"class_path": f"{RUNS}.fly"}
DATA = "--data.dataset=tests.toy.toy_dataset"


def without_critic(**more: Any) -> Change:
    """Leaves the critic out of the settings that are checked, and adds keys beside them."""

    def change(raw: dict[str, Any]) -> None:
        del raw["hyper_parameters"]["critic"]
        raw.update(more)

    return change


def in_critic(**arguments: Any) -> Change:
    return lambda raw: raw["hyper_parameters"]["critic"]["init_args"].update(arguments)


OLD_KEYS: dict[str, Change] = {
    "hparams": without_critic(hparams={"critic": FLY}),
    "module_arguments": without_critic(module_arguments={"critic": FLY}),
    "antigravity in hparams": without_critic(hparams={"critic": {"class_path": "antigravity.fly"}}),
    "hparams that are no settings": without_critic(hparams=["critic"]),
    "hparams beside a critic": lambda raw: raw.update(hparams={"critic": FLY}),
    "a name for the settings": lambda raw: raw.update(hparams_name="critic"),
    "a type of the settings": lambda raw: raw.update(hparams_type=f"{RUNS}.fly"),
}
STRINGS: dict[str, Change] = {
    "YAML in a string": in_critic(norm=f"{{class_path: {RUNS}.fly}}"),
    "JSON in a string": in_critic(block=f'{{"class_path": "{RUNS}.fly"}}'),
    "YAML over several lines": in_critic(norm=f"class_path: {RUNS}.fly\ninit_args: null"),
    "YAML of one pair": in_critic(weight_parametrisation=f"class_path: {RUNS}.fly"),
    "a configuration by its name": in_critic(norm="part.yaml"),
    "a class by its path alone": in_critic(norm=f"{RUNS}.fly"),
    "arguments in a string": lambda raw: raw["hyper_parameters"]["critic"].update(init_args="{}"),
    "arguments beside arguments": lambda raw: raw["hyper_parameters"]["critic"].update(dict_kwargs={"norm": FLY}),
    "a note of the parser": in_critic(norm={"__path__": "part.yaml"}),
    "YAML in a number's place": lambda raw: raw["hyper_parameters"].update(tau=f"{{class_path: {RUNS}.fly}}"),
    "another maker": lambda raw: raw["hyper_parameters"].update(_instantiator=f"{RUNS}.fly"),
    "another class": lambda raw: raw["hyper_parameters"].update(_class_path=f"{RUNS}.fly"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a module that writes a file when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{RUNS}.py").write_text("open('executed', 'w').close()\ndef fly(*_): ...\n")
    (tmp_path / "part.yaml").write_text(f"class_path: {RUNS}.fly\n")
    yield tmp_path
    assert not (tmp_path / "executed").exists()
    assert not {RUNS, "antigravity"} & sys.modules.keys()


def forged(whole: Path, folder: Path, change: Change) -> Path:
    raw = torch.load(whole, weights_only=True)
    change(raw)
    torch.save(raw, folder / "forged.ckpt")
    return folder / "forged.ckpt"


@pytest.mark.parametrize("change", OLD_KEYS.values(), ids=OLD_KEYS)
def test_settings_under_old_keys_are_refused_on_every_road(change: Change, whole: Path, folder: Path) -> None:
    path = forged(whole, folder, change)
    job = EvaluationJob(5, str(path), "Pendulum-v1", 1, 0, 1, False, None)
    roads: list[Callable[[], object]] = [
        lambda: read_checkpoint(path, mmap=True),
        lambda: load_checkpoint(path),
        lambda: load_checkpoint(path, trusted=True),
        lambda: export_checkpoint(path, folder / "policy", "torch"),
        lambda: newest_whole([path]),
        lambda: job.work(lambda: None),
        lambda: fit(folder / "run", toy_model(), 10, ckpt_path=path, plugins=WholeCheckpointIO()),
    ]
    for road in roads:
        with pytest.raises(
            CheckpointError, match=r"expected settings under hyper_parameters alone, found (h|module_arg)"
        ):
            road()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "evaluate", "export"])
def test_every_command_refuses_settings_under_old_keys(command: str, whole: Path, folder: Path) -> None:
    path = forged(whole, folder, OLD_KEYS["hparams"])
    (folder / "tiny.yaml").write_text(TINY)
    measured = ["--config", "tiny.yaml", DATA, f"--ckpt_path={path}"]
    arguments = {"evaluate": [str(path)], "export": [str(path)]}.get(command, measured)
    refused = call_tql(folder, command, *arguments)
    assert refused.returncode == 2
    assert "found hparams of an early Lightning version" in refused.stderr
    assert not (folder / "run" / "config.yaml").exists()


@pytest.mark.parametrize("change", slow_after(4, STRINGS.values()), ids=STRINGS)
def test_a_string_in_the_settings_is_never_parsed_into_a_part(change: Change, whole: Path, folder: Path) -> None:
    path = forged(whole, folder, change)
    with pytest.raises(CheckpointError, match="does not fit its model"):
        load_checkpoint(path)
    (folder / "tiny.yaml").write_text(TINY)
    refused = call_tql(folder, "validate", "--config", "tiny.yaml", DATA, f"--ckpt_path={path}")
    assert (refused.returncode, len(refused.stderr) < 1000) == (2, True)


def test_plain_text_in_the_settings_of_ones_own_part_is_text(whole: Path, folder: Path) -> None:
    (folder / "own_norm.py").write_text(
        "from torch import nn\n"
        "class Named(nn.LayerNorm):\n"
        "    def __init__(self, dim: int, label: str = 'a'):\n"
        "        super().__init__(dim, eps=1e-6)\n"
        "        self.label = label\n"
    )
    label = "cuda:0, weights of C:/run #1.pt & more"
    named = {"class_path": "own_norm.Named", "init_args": {"label": label}}
    path = forged(whole, folder, in_critic(norm=named))
    model, _ = load_checkpoint(path)
    assert {each.label for each in model.critic.modules() if type(each).__name__ == "Named"} == {label}
    del sys.modules["own_norm"]


def test_a_checkpoint_is_read_once_and_loads_as_lightning_loads_it(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    read = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **named: reads.append(args[0]) or read(*args, **named))
    model, _ = load_checkpoint(whole)
    assert reads == [whole]
    same = type(model).load_from_checkpoint(whole, weights_only=True)
    assert list(model.state_dict()) == list(same.state_dict())
    assert all(torch.equal(each, same.state_dict()[name]) for name, each in model.state_dict().items())
    assert model.current_update == same.current_update == 5
    assert str(model.hparams) == str(same.hparams)


def test_no_string_goes_to_a_part_whose_annotations_cannot_be_told(whole: Path, folder: Path) -> None:
    (folder / "vague_norm.py").write_text(
        "from __future__ import annotations\n"
        "from torch import nn\n"
        "class Vague(nn.LayerNorm):\n"
        "    def __init__(self, dim: int, inner: Absent | None = None):\n"
        "        super().__init__(dim)\n"
    )
    vague = {"class_path": "vague_norm.Vague", "init_args": {"inner": "part.yaml"}}
    with pytest.raises(CheckpointError, match="inner: expected a class path with its arguments"):
        load_checkpoint(forged(whole, folder, in_critic(norm=vague)))
    del sys.modules["vague_norm"]


def layers(count: int) -> Change:
    return lambda raw: raw["hyper_parameters"]["policy"]["init_args"].update(hidden_dims=[1] * count)


TOO_LARGE: dict[str, Change] = {
    "layers": in_critic(num_layers=10**9),
    "width": in_critic(hidden_dim=2**20),
    "width of 40 bits": in_critic(hidden_dim=2**40, head_dim=2**40),
    "critics": in_critic(num_critics=10**8),
    "layers of the policy": layers(9_000),
    "some layers of the policy": layers(300),
    "text without end": lambda raw: raw["hyper_parameters"].update(extraction="a." * 10**6),
    "a name without end": lambda raw: raw["hyper_parameters"]["critic"].update({"a." * 10**6: 1}),
    "observations": lambda raw: raw["hyper_parameters"].update(observation_dim=10**8),
    "actions": lambda raw: raw["hyper_parameters"].update(action_dim=10**9),
}


@pytest.mark.parametrize("change", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_network_larger_than_its_weights_is_not_built(change: Change, whole: Path, folder: Path) -> None:
    path = forged(whole, folder, change)
    started = time.process_time()
    with watched(folder), pytest.raises(CheckpointError, match="does not fit its model") as refused:
        load_checkpoint(path)
    assert time.process_time() - started < 20
    assert len(str(refused.value)) < 500
