"""The README holds: its commands and code run, its tree is the tree, and CI runs what it tells users to."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.browser import REQUIRED
from tests.command_line import TQL_COMMAND, call_tql, parse_fit
from tests.test_layers import ALLOWED, MODULES
from tests.toy import toy_dataset
from tql_lightning.cli.commands import COMMANDS, GROUPS
from tql_lightning.cli.parsers import command_parser
from tql_lightning.evaluation.rollout import RolloutResult

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
CONSOLE = [line[2:].partition("   #")[0] for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
TREE = next(text for kind, text in BLOCKS if kind == "text")
BROWSER_INSTALL = "apt-get install -y -qq chromium chromium-driver"
GLOSSARY = ROOT / "docs" / "metrics.md"


def commands(name: str) -> list[list[str]]:
    """The arguments of every shown command of this name."""
    split = [shlex.split(line) for line in CONSOLE]
    return [words[1:] for words in split if words and words[0] == name]


def listed_packages() -> list[str]:
    """Packages in the order of the README's map."""
    (section,) = re.findall(r"^tql_lightning/\n((?:  .*\n)+)", TREE, flags=re.MULTILINE)
    return re.findall(r"^  (\w+)(?:/|\.py) +\S", section, flags=re.MULTILINE)


def test_ci_runs_the_readmes_test_command_after_it_has_seen_to_a_browser() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    steps = [f"export {REQUIRED}=1", "apt-get update", BROWSER_INSTALL, "\nmake test\n"]
    assert [script.count(step) for step in steps] == [1, 1, 1, 1]
    assert [script.index(step) for step in steps] == sorted(script.index(step) for step in steps)
    assert "make test" in CONSOLE
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_every_make_command_shown_exists() -> None:
    targets = [arguments[0] for arguments in commands("make")] + re.findall(r"`make ([\w-]+)`", README)
    assert {"quickstart", "test", "help"} <= set(targets)
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_every_tql_command_shown_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = commands("tql")
    assert {arguments[0] for arguments in shown} >= {"fit", "evaluate", "collect"}
    for name, *arguments in shown:
        if name in COMMANDS:
            command_parser(name, COMMANDS[name], GROUPS.get(name)).parse_args(arguments)
        elif "--help" not in arguments and "mine." not in " ".join(arguments):
            assert name == "fit"
            parse_fit(monkeypatch, *arguments)


def test_the_python_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = [text for text in PYTHON if "def train" in text]
    namespace: dict[str, object] = {}
    exec(example, namespace)  # the README's own code
    train = namespace["train"]
    assert callable(train)
    assert train(toy_dataset(), 10).trainer.global_step == 10


def test_the_users_parts_shown_run_and_every_logged_metric_is_in_the_glossary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQL_DATASETS", str(tmp_path))
    parts = [text for text in PYTHON if text.startswith("# mine.py")]
    (tmp_path / "mine.py").write_text("\n".join(parts))
    shown = [arguments[3:] for arguments in commands("tql") if "mine." in " ".join(arguments)]
    assert len(parts) == len(shown) == 3
    critic = [arguments for arguments in shown if "--model.critic=" in arguments[0]]
    others = [argument for arguments in shown if arguments not in critic for argument in arguments]
    # Interpolation of the path needs no file, as the README's own dataset takes its place.
    fit = ["fit", "--config", "quickstart", "--config", "smoke"]
    trained = call_tql(tmp_path, *fit, *others)
    assert trained.returncode == 0, trained.stderr
    assert re.search(r"\]50 -?\d+\.\d+", trained.stdout), "the callback printed nothing after update 50"

    with_critic = [*fit, *others, *critic[0], "--trainer.default_root_dir=with_critic"]
    assert call_tql(tmp_path, *with_critic).returncode == 0

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


def test_the_map_has_one_line_a_package() -> None:
    assert sorted([*listed_packages(), "__main__"]) == sorted(ALLOWED)


def test_the_maps_order_is_that_of_imports() -> None:
    listed = listed_packages()
    for position, name in enumerate(listed):
        below = ALLOWED[name] & set(listed[position + 1 :])
        assert not below, f"the README lists {below} under {name}, which may import it"


def test_every_folder_and_link_shown_exists() -> None:
    for folder in re.findall(r"^(\w+)/", TREE, flags=re.MULTILINE):
        assert (ROOT / folder).is_dir()
    for document in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").glob("*.md"),
    ):
        for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
            assert target.startswith("https://") or (document.parent / target).is_file(), target


def test_every_document_and_section_that_docstrings_cite_exists() -> None:
    headings = re.findall(r"^## (\d)\.", (ROOT / "docs" / "algorithm.md").read_text(), flags=re.MULTILINE)
    cited: set[str] = set()
    for path in MODULES.values():
        text = path.read_text()
        for document in re.findall(r"docs/\w+\.md", text):
            assert (ROOT / document).is_file(), f"{path}: {document}"
        for sections in re.findall(r"sections? ([\d and to]+) of docs/algorithm\.md", text):
            cited |= set(re.findall(r"\d", sections))
    assert {"2", "3", "4", "5", "6"} <= cited <= set(headings)


def test_the_command_is_installed() -> None:
    assert Path(TQL_COMMAND).is_file()
