"""Which model ``--model`` and configurations choose, and what is said where there is none such."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.command_line import TINY, ParsedOnly, call_tql
from tql_lightning.cli.configs import resolve_configs
from tql_lightning.cli.main import main
from tql_lightning.cli.moved import MOVED, moved_paths

TOY = "--data.dataset=tests.toy.toy_dataset"
MINE = '''
from tql_lightning import TQL


class Penalised(TQL):
    """TQL with one more loss.

    Args:
        penalty_weight: Weight of the penalty.
    """

    def __init__(self, observation_dim: int, action_dim: int, penalty_weight: float = 1.0, **settings):
        super().__init__(observation_dim, action_dim, **settings)


class Other(TQL):
    """An algorithm that shares few settings with TQL.

    Args:
        expectile: Expectile of the value function.
        tau: Share of the critic that moves into the target critic.
    """

    def __init__(self, observation_dim: int, action_dim: int, expectile: float = 0.7, tau: float = 0.1):
        super().__init__(observation_dim, action_dim, tau=tau)


class Flat(TQL):
    """An algorithm written for an earlier version."""

    def __init__(self, observation_dim: int, action_dim: int, action_chunk: int = 1):
        super().__init__(observation_dim, action_dim, action_chunk=action_chunk)
'''
FILES = {
    "tiny.yaml": TINY,
    "penalised.yaml": "model:\n  class_path: mine.Penalised\n  init_args:\n    penalty_weight: 3e-1\n"
    "    discount: 0.9\n    bc_coefficient: ${model.init_args.discount}\n",
    "flat.yaml": "model:\n  penalty_weight: 0.5\n",
    "bare.yaml": "penalty_weight: 0.5\n",
    "other.yaml": "model:\n  class_path: mine.Other\n",
    "discount.yaml": "data:\n  discount: 0.5\n",
    "beside.yaml": "model:\n  class_path: mine.Other\n  expectile: 0.9\n",
    "typo.yaml": "model:\n  class_path: mine.Other\n  init_args: {expectil: 0.9}\n",
    "linked.yaml": "model:\n  class_path: mine.Penalised\n  init_args: {action_chunk: 4}\n",
    "old.yaml": "trainer:\n  plugins: tql_lightning.checkpoint_io.WholeCheckpointIO\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's working folder, with models of their own."""
    (tmp_path / "mine.py").write_text(MINE)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mine", None)


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Name of the chosen class, and the resolved configuration of fit."""
    monkeypatch.setattr(sys, "argv", ["tql", *resolve_configs(["fit", *arguments], ["fit"])])
    command = ParsedOnly()
    assert isinstance(command._model_class, type)
    configuration: dict[str, Any] = command.config["fit"].as_dict()
    return command._model_class.__name__, configuration


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore:.*left out model")
@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ([], "TQL"),
        (["--model=TQL"], "TQL"),
        (["--model", "mine.Penalised"], "Penalised"),
        (["--config=penalised.yaml"], "Penalised"),
        (["--config=penalised.yaml", "-c", "other.yaml"], "Other"),
        (["--config=other.yaml", "--model=mine.Penalised"], "Penalised"),
        (["--model=bare.yaml", "--model=mine.Penalised"], "Penalised"),
    ],
)
def test_the_last_class_that_is_named_is_chosen_and_flags_come_before_files(
    arguments: list[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parsed(monkeypatch, *arguments, TOY)[0] == chosen


@pytest.mark.usefixtures("folder")
def test_settings_of_a_class_stand_flat_or_under_init_args(monkeypatch: pytest.MonkeyPatch) -> None:
    _, named = parsed(monkeypatch, TOY, "--config=penalised.yaml", "--model.discount=0.8")
    assert (named["model"]["penalty_weight"], named["model"]["discount"]) == (0.3, 0.8)
    assert named["model"]["bc_coefficient"] == 0.8
    assert named["data"]["discount"] == 0.8
    _, flat = parsed(monkeypatch, TOY, "--model=mine.Penalised", "--config=flat.yaml")
    assert flat["model"]["penalty_weight"] == 0.5


@pytest.mark.usefixtures("folder")
def test_another_class_takes_of_a_packaged_configuration_only_the_settings_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr("tql_lightning.cli.model.rank_zero_info", told.append)
    _, configuration = parsed(monkeypatch, "--config=quickstart", "--model=mine.Other")
    assert re.search(r"quickstart\.yaml: left out model\.bc_coefficient, .*of TQL that Other", told[0])
    own = {"observation_dim", "action_dim", "expectile", "tau"}
    assert configuration["model"].keys() <= own
    assert (configuration["model"]["tau"], configuration["trainer"]["max_steps"]) == (0.03, 2400)


@pytest.mark.usefixtures("folder")
def test_a_class_without_a_discount_leaves_the_datas_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    _, configuration = parsed(monkeypatch, TOY, "--model=mine.Other", "--config=discount.yaml")
    assert configuration["data"]["discount"] == 0.5
    assert "discount" not in configuration["model"]


def test_a_runs_configuration_starts_the_same_run_again(folder: Path) -> None:
    trained = call_tql(folder, "fit", "--config=tiny.yaml", TOY, "--model=mine.Penalised", "--model.penalty_weight=2")
    assert trained.returncode == 0, trained.stderr
    kept = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert kept["model"]["class_path"] == "mine.Penalised"
    assert kept["model"]["init_args"]["penalty_weight"] == 2.0
    checkpoint = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["penalty_weight"] == 2.0
    again = call_tql(folder, "fit", "--config=run/config.yaml", "--trainer.default_root_dir=again")
    assert again.returncode == 0, again.stderr
    same = yaml.safe_load((folder / "again" / "config.yaml").read_text())
    assert same == kept | {"trainer": kept["trainer"] | {"default_root_dir": "again"}}
    first, second = (
        torch.load(folder / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("run", "again")
    )
    assert all(torch.equal(second[name], weights) for name, weights in first.items())
    assert len(first) > 10


def test_help_and_the_printed_configuration_are_those_of_the_class(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for arguments in (["--help"], [TOY, "--print_config"]):
        with pytest.raises(SystemExit, match="0"):
            main(["fit", "--model=mine.Penalised", *arguments])
        printed.append(capsys.readouterr().out)
    text = " ".join(printed[0].split())
    assert "--model.penalty_weight Weight of the penalty." in text
    assert "--model.tau Share of the critic" in text
    assert "now mine.Penalised." in text
    (folder / "printed.yaml").write_text(printed[1])
    assert yaml.safe_load(printed[1])["model"]["class_path"] == "mine.Penalised"
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config=printed.yaml", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed[1])


SMALL = {
    "MyTQL": ("--model.critic.hidden_dim=32", "--model.policy.hidden_dims=[16]", "--model.cql_weight=0.5"),
    "IQL": ("--model.hidden_dim=16", "--model.optimisation.learning_rates={value: 1e-3}"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_users_algorithm_trains_continues_and_is_reported(name: str, folder: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "user_models.py", folder / "mine.py")
    settings = yaml.safe_load(TINY)
    del settings["model"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    trained = call_tql(folder, "fit", "--config=tiny.yaml", TOY, f"--model=mine.{name}", *SMALL[name])
    assert trained.returncode == 0, trained.stderr
    continued = call_tql(folder, "fit", "--config=run/config.yaml", "--ckpt_path=last", "--trainer.max_steps=40")
    assert continued.returncode == 0, continued.stderr
    checkpoint = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (checkpoint["algorithm"], checkpoint["global_step"]) == (f"mine.{name}", 40)
    other = call_tql(folder, "fit", "--config=tiny.yaml", TOY, "--ckpt_path=last", "--trainer.max_steps=60")
    assert other.returncode == 2
    assert f"found one of mine.{name}; add --model=mine.{name}" in other.stderr
    reported = call_tql(folder, "report", "run")
    assert reported.returncode == 0, reported.stderr
    assert f"mine.{name}" in (folder / "report.html").read_text()


MISTAKES = {
    "a class": (
        ["--model=mine.Penalized"],
        "--model: expected a subclass of Algorithm at mine.Penalized, found nothing",
    ),
    "a close class": (["--model=mine.Penalized"], "did you mean mine.Penalised?"),
    "a class of the package": (["--model=TQLL"], "did you mean tql_lightning.TQL?"),
    "a module": (["--model=min.Penalised"], "there is no module min; run tql in the folder that holds min.py"),
    "no algorithm": (["--model=collections.OrderedDict"], "collections.OrderedDict, found something else"),
    "the base class": (["--model=tql_lightning.training.algorithm.Algorithm"], "lacks what every algorithm defines"),
    "beside class_path": (["--config=beside.yaml"], "beside.yaml: model: beside class_path stands init_args alone"),
    "a setting in a file": (["--config=typo.yaml"], "'model.expectil'"),
    "a setting": (["--model=mine.Penalised", "--model.penalty_wait=1"], "did you mean --model.penalty_weight"),
    "settings of an earlier version": (["--model=mine.Flat"], "to take problem: Problem"),
    "a setting of the data": (["--config=linked.yaml"], "model.action_chunk: expected nothing"),
    "an old class": (
        ["--model=tql_lightning.tql.TQL"],
        "tql_lightning.tql.TQL is now tql_lightning.algorithms.tql.TQL",
    ),
    "an old class in a file": (
        ["--config=old.yaml"],
        "tql_lightning.checkpoint_io.WholeCheckpointIO is now tql_lightning.run.checkpoint_io.WholeCheckpointIO",
    ),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_with_its_place_and_what_was_meant(
    arguments: list[str], expected: str, folder: Path
) -> None:
    refused = call_tql(folder, "fit", TOY, *arguments)
    assert refused.returncode == 2
    assert expected in refused.stderr
    assert len(refused.stderr.splitlines()) <= 10


def test_every_module_that_moved_is_where_the_table_says() -> None:
    for old, new in MOVED.items():
        assert importlib.util.find_spec(f"tql_lightning.{new}") is not None, new
        package, _, name = f"tql_lightning.{old}".rpartition(".")
        assert importlib.util.find_spec(f".{name}", package) is None, old


def test_old_paths_are_found_in_a_message() -> None:
    text = "no tql_lightning.data.behaviours.swing_up, tql_lightning.data.npz or mine.tql_lightning"
    assert moved_paths(text) == {
        "tql_lightning.data.behaviours.swing_up": "tql_lightning.data.collecting.behaviours.swing_up"
    }
