"""The documents hold: their examples run, and what they list is what there is."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from tests.command_line import TQL_COMMAND, call_tql, parse_fit, understand
from tests.toy import fit, toy_model
from tql_lightning.cli.commands import COMMANDS
from tql_lightning.cli.configs import packaged_configs
from tql_lightning.data.named import load_dataset
from tql_lightning.evaluation.rollout import RolloutResult
from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.training.optimisation import Optimisation
from tql_lightning.training.trainer_checks import REFUSED_CALLBACKS

DOCS = Path(__file__).parents[1] / "docs"
CALLBACKS = (DOCS / "callbacks.md").read_text()
GLOSSARY = DOCS / "metrics.md"


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


@pytest.mark.slow
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


def test_every_promise_has_tests_that_there_are() -> None:
    promised = re.findall(r"^- \*\*(.+?)\.\*\*", (DOCS / "reliability.md").read_text(), flags=re.MULTILINE)
    text = (DOCS.parent / "CONTRIBUTING.md").read_text().partition("## Promises and their tests")[2]
    rows = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("| ") and "tests |" not in row]
    assert len(promised) > 50
    assert [name for name, _ in rows][-len(promised) :] == promised
    missing = []
    for _, row in rows:
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
    for path in (DOCS.parent / "callbacks").glob("[!_]*.py"):
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


def test_the_picture_of_the_method_is_what_its_script_draws() -> None:
    picture = runpy.run_path(str(DOCS / "method_picture.py"))["picture"]()
    assert (DOCS / "method.svg").read_text() == picture
    assert "prefers-color-scheme:dark" in picture


@pytest.mark.parametrize("page", ["command_line", "debug", "own_critic", "own_dataset", "sweep", "tutorial"])
def test_every_command_of_a_page_is_understood(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("{}")
    shown = [re.sub(r"\$\w+", "1", command) for command in commands_of(page) if "RUN/" not in command]
    assert shown
    for command in shown:
        understand(monkeypatch, shlex.split(command, comments=True)[1:])


def commands_of(page: str) -> list[str]:
    """Every ``tql ...`` of a page's consoles, those in loops too."""
    consoles = re.findall(r"```console\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)
    return re.findall(r"\btql \w[^;|>\n]*", "\n".join(consoles))


def test_the_page_on_the_command_line_has_every_command() -> None:
    found = re.findall(r"heading: tql ([\w ]+),", (DOCS / "command_line.md").read_text())
    there = [
        [f"{name} {each}" for each in part] if isinstance(part, dict) else [name] for name, part in COMMANDS.items()
    ]
    assert sorted(found) == sorted(name for names in there for name in names)


def python_of(page: str) -> list[str]:
    """A page's blocks of Python."""
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_the_users_parts_shown_run_and_every_logged_metric_is_in_the_glossary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQL_DATASETS", str(tmp_path))
    pages = ("callbacks", "own_critic", "own_dataset")
    parts = [text for page in pages for text in python_of(page) if text.startswith("# mine.py")]
    (tmp_path / "mine.py").write_text("\n".join(parts))
    shown = [
        shlex.split(command)[4:]
        for page in pages
        for command in commands_of(page)
        if re.search(r"=mine\.(?!npz)", command)
    ]
    assert (len(parts), len(shown)) == (3, 4)
    critics = [arguments for arguments in shown if "--model.critic=" in arguments[0]]
    others = [argument for arguments in shown if arguments not in critics for argument in arguments]
    # Interpolation of the path needs no file, as the page's own dataset takes its place.
    fit_smoke = ["fit", "--config", "quickstart", "--config", "smoke"]
    trained = call_tql(tmp_path, *fit_smoke, *others)
    assert trained.returncode == 0, trained.stderr
    assert re.search(r"[\]\r\n]50 -?\d+\.\d+", trained.stdout), "the callback printed nothing after update 50"

    with_critic = [
        *fit_smoke,
        *others,
        *critics[-1],
        "--trainer.default_root_dir=with_critic",
        "--trainer.max_steps=10",
    ]
    assert call_tql(tmp_path, *with_critic).returncode == 0
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, Any] = {}
    exec(python_of("own_critic")[-1], namespace)  # the document's own code
    assert namespace["model"].critic(torch.zeros(2, 3), torch.zeros(2, 1)).values.shape == (2, 4)

    header = (tmp_path / "runs" / "mine" / "metrics.csv").read_text().partition("\n")[0]
    logged = [key for key in header.strip().split(",") if key not in ("step", "epoch")]
    patterns = glossary_patterns()
    assert [key for key in logged if not any(re.fullmatch(pattern, key) for pattern in patterns)] == []
    trained_by = [pattern for pattern in glossary_patterns(of_tql=True) if pattern.startswith("train/")]
    explained = [pattern for pattern in trained_by if "flops" not in pattern]  # of GPUs
    assert [pattern for pattern in explained if not any(re.fullmatch(pattern, key) for key in logged)] == []


def glossary_patterns(of_tql: bool = False) -> list[str]:
    """A pattern for every key in the first column of the glossary."""
    patterns: list[str] = []
    text = GLOSSARY.read_text()
    for line in (text.partition("## Of other methods")[0] if of_tql else text).splitlines():
        first = ""
        for key in re.findall(r"`([^`]+)`", line.split("|")[1]) if line.startswith("| `") else ():
            first = first or key
            whole = key if key == first or key.startswith(("train/", "val/", "test/", "eval/")) else None
            whole = whole or f"{first.rpartition('/')[0]}/{key.lstrip('/')}"
            pattern = re.escape(whole).replace(re.escape("..."), ".+")
            patterns.append(re.sub(r"<\w+>", r"\\w+", pattern))
    return patterns


def test_every_figure_of_an_evaluation_is_in_the_glossary() -> None:
    every = RolloutResult(np.ones(3), np.ones(3), np.ones(3)).summary(reference_scores=(0.0, 1.0))
    assert "normalized_score_low" in every
    keys = [f"eval/{name}" for name in every]
    assert [key for key in keys if not any(re.fullmatch(pattern, key) for pattern in glossary_patterns())] == []


def test_the_glossary_says_of_every_key_what_it_should_look_like() -> None:
    rows = [line.split("|")[1:-1] for line in GLOSSARY.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    assert [row[0] for row in rows if len(row) != 4 or not row[3].strip()] == []


def test_the_file_of_an_own_dataset_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(python_of("own_dataset")[0], {})  # the document's own code
    dataset = load_dataset("mine.npz")
    assert (len(dataset), dataset.episode_ends.sum(), dataset.env_id) == (1000, 5, "Pendulum-v1")


def test_every_extra_that_a_page_names_exists() -> None:
    extras = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pages = "\n".join(path.read_text() for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md"])
    named = {name for found in re.findall(r"tql-lightning\[([\w,]+)\]", pages) for name in found.split(",")}
    listed = re.findall(r"^\| (`[\w`, ]+`) \|", (DOCS / "index.md").read_text(), flags=re.MULTILINE)
    named |= set(re.findall(r"\w+", " ".join(listed)))
    assert named >= {"video", "export", "hub"}
    assert named <= extras.keys()


@pytest.mark.slow
def test_the_tutorial_leads_from_data_to_a_film_and_a_policy(tmp_path: Path) -> None:
    text = (DOCS / "tutorial.md").read_text()
    printed = []
    for language, block in re.findall(r"```(python|console)\n(.*?)```", text, flags=re.DOTALL):
        if language == "python":
            (tmp_path / block.split()[1]).write_text(block)
        for line in block.splitlines() if language == "console" else ():
            program, *arguments = shlex.split(line.removeprefix("$ "))
            start = [sys.executable] if program == "python" else [TQL_COMMAND]
            finished = subprocess.run([*start, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert finished.returncode == 0, f"{line}: {finished.stderr}"
            printed.append(finished.stdout)
    learned, cloned = (float(re.findall(r"return +(-[\d.]+)", table)[0]) for table in printed[3:5])
    assert learned > cloned + 400.0
    assert float(printed[-1].split()[1]) > -1_000.0
    assert len(list((tmp_path / "runs" / "mine" / "videos").glob("*.mp4"))) == 2
    assert (tmp_path / "report.html").stat().st_size > 100_000
