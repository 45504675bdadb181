"""A configuration makes what its places are for: what else it names is refused before it is called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.export.test_policy import trained
from tests.toy import toy_dataset
from tql_lightning.cli.main import main
from tql_lightning.data.sources.npy_folder import save_npy_folder
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.export.writer import export_checkpoint

COMMAND = {"class_path": "os.system", "init_args": {"command": "touch executed"}}
PROCESS = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "executed"]}}
PLACES = {
    "critic": "model.critic",
    "policy": "model.policy",
    "entropy control": "model.entropy_control",
    "value loss": "model.value_loss",
    "part of the critic": "model.critic.init_args.norm",
    "dataset": "data.dataset",
    "callback": "trainer.callbacks.0",
    "logger": "trainer.logger",
    "plugin": "trainer.plugins",
    "strategy": "trainer.strategy",
    "profiler": "trainer.profiler",
}


def config(place: str, value: object) -> str:
    """The text of a configuration with a value at a dotted place."""
    for key in reversed(place.split(".")):
        value = [value] if key.isdigit() else {key: value}
    return yaml.safe_dump(value)


SHORT = ("critic", "part of the critic", "dataset", "callback", "logger")  # a name alone, in a place of each kind
CASES = [(place, COMMAND) for place in PLACES] + [(place, "os.system") for place in SHORT] + [("callback", PROCESS)]


@pytest.mark.parametrize(("place", "named"), CASES)
def test_what_is_no_part_of_its_place_is_not_called(
    place: str, named: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[object] = []
    monkeypatch.setattr(os, "system", lambda *given, **_: called.append(given))
    (tmp_path / "forged.yaml").write_text(config(PLACES[place], named))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    dataset = [] if place == "dataset" else ["--data.dataset=tests.toy.toy_dataset"]
    assert main(["fit", *dataset, "--trainer.accelerator=cpu", "--config", "forged.yaml"]) == 2
    message = capsys.readouterr().err
    assert PLACES[place].partition(".init")[0].removesuffix(".0") in message or place in message
    assert called == []
    assert not Path("executed").exists()


def test_an_export_does_nothing_that_the_configuration_beside_a_checkpoint_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = trained(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = "from tql_lightning import TransitionDataset\nfrom tests.toy import toy_dataset\nopen('executed', 'w')\n"
    (tmp_path / "my_data.py").write_text(f"{source}def data() -> 'TransitionDataset':\n    return toy_dataset()\n")
    minari = {"class_path": "tql_lightning.data.load_minari", "init_args": {"dataset_id": "D4RL/door/human-v2"}}
    for number, named in enumerate(("my_data.data", "this.s", minari)):
        (tmp_path / "run" / "config.yaml").write_text(config("data.dataset", named))
        exported = export_checkpoint(checkpoint, tmp_path / f"policy_{number}", "torch")
        assert exported.metadata["verification"]["observations"] == "random actions in Pendulum-v1"
    assert not Path("executed").exists()
    assert not {"this", "my_data"} & sys.modules.keys()


def test_an_export_loads_the_dataset_that_the_user_names(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path / "run")
    save_npy_folder(tmp_path / "toy", toy_dataset())
    exported = export_checkpoint(checkpoint, tmp_path / "policy", "torch", dataset=str(tmp_path / "toy"))
    assert exported.metadata["verification"]["observations"] == "dataset toy"
    ends = np.arange(9) == 8
    pairs, numbers = np.zeros((9, 2)), np.zeros(9)
    other = TransitionDataset.from_arrays(pairs, pairs, numbers, ends, ends, pairs, name="other")
    save_npy_folder(tmp_path / "other", other)
    with pytest.raises(DatasetError, match="expected 3 observations, as the checkpoint has, found 2"):
        export_checkpoint(checkpoint, tmp_path / "wrong", "torch", dataset=str(tmp_path / "other"))
    assert not (tmp_path / "wrong").exists()
