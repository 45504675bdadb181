"""The documents hold: their examples run, and what they list is what there is."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from tests.command_line import parse_fit
from tests.toy import fit, toy_model
from tql_lightning.cli.configs import packaged_configs
from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.training.optimisation import Optimisation
from tql_lightning.training.trainer_checks import REFUSED_CALLBACKS

DOCS = Path(__file__).parents[1] / "docs"
CALLBACKS = (DOCS / "callbacks.md").read_text()


def example(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n((?:(?!```).)*isagreement.*?)```", CALLBACKS, flags=re.DOTALL)
    assert isinstance(text, str)
    return text


def test_the_example_of_a_callback_runs_and_observes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disagreement.py").write_text(example("python"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    callback = importlib.import_module("disagreement").Disagreement(every_n_updates=5)
    watched, plain = toy_model(), toy_model()
    logger = CSVLogger(tmp_path / "run", name="", version="")
    fit(tmp_path, watched, 10, [callback], logger=logger)
    logger.save()
    updates, values = read_metrics(tmp_path / "run" / "metrics.csv")["train/disagreement"]
    assert updates == [0, 5, 10]
    assert min(values) > 0.0
    fit(tmp_path, plain, 10)
    assert all(torch.equal(value, watched.state_dict()[name]) for name, value in plain.state_dict().items())
    command = shlex.split(example("console").removeprefix("$ "))
    configuration = parse_fit(monkeypatch, *command[2:])
    added = configuration["trainer"]["callbacks"][-1]
    assert added["class_path"] == "disagreement.Disagreement"
    assert added["init_args"]["every_n_updates"] == 10


def test_the_commands_about_scaling_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (DOCS / "scaling.md").read_text()
    consoles = "".join(re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", "")
    commands = [shlex.split(line, comments=True) for line in consoles.splitlines()]
    fits = [command[command.index("fit") + 1 :] for command in commands if "fit" in command]
    found = [parse_fit(monkeypatch, *arguments)["trainer"] for arguments in fits]
    devices = [(str(trainer["devices"]), trainer["num_nodes"]) for trainer in found]
    assert devices == [("1", 1), ("auto", 1), ("1", 1), ("4", 1), ("4", 1), ("2", 2), ("4", 1)]
    (strategy,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "strategy.yaml").write_text(strategy)
    configured = parse_fit(monkeypatch, "--config", "quickstart", "--config", str(tmp_path / "strategy.yaml"))
    assert configured["trainer"]["strategy"]["init_args"]["static_graph"] is True


def test_every_promise_names_tests_that_there_are() -> None:
    text = (DOCS / "reliability.md").read_text()
    tables = re.findall(r"^\| promise \| shown by \|\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    rows = [row.removesuffix(" |").rpartition(" | ")[2] for table in tables for row in table.splitlines()]
    assert len(rows) > 40
    missing = []
    for row in rows:
        found = re.findall(r"`(tests/[\w/.]+)`(?:: ([^`;]*))?", row)
        missing += [] if found else [row]
        for name, words in found:
            path = DOCS.parent / name
            source = path.read_text() if path.suffix == ".py" else ""
            known = " ".join(re.findall(r"def test_(\w+)", source)).replace("_", " ")
            known += "\n" + "\n".join(re.findall(r'^ *"(.*?)": ', source, flags=re.MULTILINE))
            said = [each.strip() for each in words.split(",") if each.strip()] if source else []
            missing += [f"{name}: {each}" for each in said if each not in known]
            missing += [] if path.exists() else [name]
    assert missing == []


def test_the_command_that_films_while_training_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = re.findall(r"^\$ (tql fit .*EpisodeVideos.*)$", CALLBACKS, flags=re.MULTILINE)
    added = parse_fit(monkeypatch, *shlex.split(command)[2:])["trainer"]["callbacks"][-1]
    assert added["class_path"] == "tql_lightning.callbacks.episode_videos.EpisodeVideos"
    assert added["init_args"]["every_n_updates"] == 250


def test_the_example_of_an_implementation_sets_it() -> None:
    (text,) = re.findall(r"```python\n(.*?)```", (DOCS / "attention.md").read_text(), flags=re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(text, namespace)  # the document's own code
    attentions = [part for part in namespace["critic"].modules() if isinstance(part, EntropyAttention)]
    assert [attention.implementation for attention in attentions] == ["chunked", "chunked"]


def test_the_example_of_an_optimizer_trains_with_it(tmp_path: Path) -> None:
    (text,) = re.findall(r"```python\n(.*?)```", (DOCS / "variants.md").read_text(), flags=re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(text, namespace)  # the document's own code
    parts = {"critic": partial(TransformerCritic, hidden_dim=16, head_dim=8)}
    trainer = fit(tmp_path, namespace["HalvedNAdam"](3, 1, **parts, optimisation=Optimisation(learning_rate=1e-3)), 5)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, torch.optim.NAdam)
    assert optimizer.param_groups[0]["lr"] == 5e-4


def test_every_callback_is_known_by_its_class_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name, _, _ in re.findall(r"^\| `(\w+)` \| `(\w+)` \| (yes|no) \|", CALLBACKS, flags=re.MULTILINE)]
    added = [f"--trainer.callbacks+={name}" for name in names if name not in ("LastCheckpoint", "BestCheckpoint")]
    configuration = parse_fit(monkeypatch, "--data.dataset=tests.toy.toy_dataset", *added)
    paths = [callback["class_path"] for callback in configuration["trainer"]["callbacks"][-len(added) :]]
    assert [f"--trainer.callbacks+={path.rpartition('.')[2]}" for path in paths] == added


def test_the_table_of_callbacks_lists_every_one_and_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (yes|no) \|", CALLBACKS, flags=re.MULTILINE)
    listed = {f"tql_lightning.callbacks.{module}.{name}" for name, module, _ in rows}
    there = set()
    for path in (DOCS.parent / "callbacks").glob("*.py"):
        module = importlib.import_module(f"tql_lightning.callbacks.{path.stem}")
        classes = [part for _, part in inspect.getmembers(module, inspect.isclass) if not inspect.isabstract(part)]
        own = [part for part in classes if issubclass(part, Callback) and part.__module__ == module.__name__]
        there |= {f"{module.__name__}.{part.__name__}" for part in own}
    assert listed == there
    configuration = parse_fit(monkeypatch, "--config", "tql", "--data.dataset=tests.toy.toy_dataset")
    default = {callback["class_path"] for callback in configuration["trainer"]["callbacks"]}
    assert default == {f"tql_lightning.callbacks.{module}.{name}" for name, module, on in rows if on == "yes"}


def test_the_table_of_lightnings_callbacks_lists_every_one() -> None:
    rows = re.findall(r"^\| (`[\w`, ]+) \| (works|refused|has no use) \|", CALLBACKS, flags=re.MULTILINE)
    listed = {name: verdict for names, verdict in rows for name in re.findall(r"\w+", names)}
    assert set(lightning.pytorch.callbacks.__all__) - {"Interval"} <= listed.keys()
    refused = {kind.__name__ for kind in REFUSED_CALLBACKS} | {"BackboneFinetuning"}
    assert {name for name, verdict in listed.items() if verdict == "refused"} == refused


def test_the_commands_about_methods_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "methods.md").read_text()
    (console,) = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    commands = [shlex.split(line) for line in console.splitlines()]
    assert len(commands) == 3
    for command in commands:
        configuration = parse_fit(monkeypatch, *command[command.index("fit") + 1 :])
        assert "hidden_dims" in configuration["model"]["critic"]["init_args"]  # an MLP's


def test_the_table_of_methods_names_every_configuration() -> None:
    listed = re.findall(r"^\| `(method/\w+)`", (DOCS / "methods.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(name for name in packaged_configs() if re.fullmatch(r"method/\w+", name))
