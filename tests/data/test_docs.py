"""docs/data.md holds: its commands, configurations and code run on real files of every kind."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import gymnasium
import jsonargparse
import numpy as np
import pytest
import yaml

from tests.command_line import parse_fit
from tests.data.formats import record, write_d4rl, write_minari
from tests.data.test_d4rl import columns
from tests.test_layers import ROOT
from tql_lightning.cli.main import main
from tql_lightning.data.named import kind_of, load_dataset
from tql_lightning.data.sources.npz import save_npz
from tql_lightning.data.sources.schema import OPTIONAL, REQUIRED, SETTINGS
from tql_lightning.data.transitions import TransitionDataset

TEXT = (ROOT / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
SOURCES = {"load_ogbench", "load_minari", "load_d4rl", "load_npz", "load_npy_folder"}


def instantiate(dataset: dict[str, Any]) -> TransitionDataset:
    """What the command line makes of ``data.dataset``."""
    jsonargparse.set_parsing_settings(subclasses_enabled=[TransitionDataset])
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--dataset", type=TransitionDataset)
    made = parser.instantiate_classes(parser.parse_object({"dataset": dataset})).dataset
    assert isinstance(made, TransitionDataset)
    return made


@pytest.mark.filterwarnings("ignore:.*DISPLAY environment variable")
def test_every_example_runs(play_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OGBENCH_DATA_DIR", str(play_folder))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "cache"))
    env = gymnasium.make("Pendulum-v1", max_episode_steps=5)
    write_minari("mujoco/pendulum/expert-v0", env, record(env, 3, 5))
    write_d4rl(tmp_path / "hopper_medium-v2.hdf5", **columns())
    table = columns()
    save_npz(
        "mine.npz",
        env_id="Absent-v0",
        terminations=table.pop("terminals"),
        truncations=table.pop("timeouts") | (np.arange(7) == 6),
        **table,
    )
    namespace: dict[str, Any] = {}
    loaded = []
    for kind, text in BLOCKS:
        if kind == "python":
            exec(text, namespace)  # the document's own code
        elif kind == "yaml":
            settings = yaml.safe_load(text)
            dataset = settings.get("data", settings)["dataset"]
            loaded.append(dataset["class_path"].rpartition(".")[2])
            instantiate(dataset)
        else:
            assert kind == "console"
            for line in text.splitlines():
                tql, command, *arguments = shlex.split(line.removeprefix("$ "), comments=True)
                assert tql == "tql"
                if command == "fit":
                    made = instantiate(parse_fit(monkeypatch, *arguments)["data"]["dataset"])
                    assert made.env_id is not None, f"its configuration evaluates: {line}"
                else:
                    assert main([command, *arguments]) == 0, line
    assert set(loaded) == SOURCES | {"load_dataset"}
    assert load_dataset("raw_mapped").episode_ends.sum() == 5
    assert (tmp_path / "mine.png").is_file()


def test_the_table_of_names_is_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large").mkdir()
    names = re.findall(r"^\| `([^`]+)` \| (?:a |our )", TEXT, flags=re.MULTILINE)
    assert [kind_of(name) for name in names] == ["ogbench", "minari", "d4rl", "npz", "folder"]


def test_the_schema_lists_every_array_and_setting() -> None:
    schema = TEXT.partition("## The schema")[2]
    listed = [name for row in re.findall(r"^\| (`.*?) \|", schema, flags=re.MULTILINE) for name in row.split(", ")]
    assert sorted(name.strip("`") for name in listed) == sorted([*REQUIRED, *OPTIONAL, *SETTINGS])
