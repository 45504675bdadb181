"""A configuration makes what its places are for: what else it names is refused before it is called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tql_lightning.cli.main import main
from tql_lightning.export.observations import sample_observations

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


def test_an_export_imports_no_module_for_the_configuration_beside_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_script.py").write_text("import sys\nsys.ran_script = True\ndef data(): ...\n")
    source = "from tql_lightning import TransitionDataset\nfrom tests.toy import toy_dataset\n"
    (tmp_path / "my_data.py").write_text(f"{source}def data() -> 'TransitionDataset':\n    return toy_dataset()\n")
    found = {}
    for named in ("this.s", "a_script.data", "my_data.data"):
        (tmp_path / "config.yaml").write_text(config("data.dataset", named))
        _, found[named] = sample_observations(tmp_path / "checkpoints" / "last.ckpt", {}, 2, 3)
    assert found == {
        "this.s": (guess := "standard normal numbers"),
        "a_script.data": guess,
        "my_data.data": "dataset toy",
    }
    assert "this" not in sys.modules
    assert not hasattr(sys, "ran_script")
