"""The README holds: its commands and code run, its tree is the tree, and CI runs what it tells users to."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.browser import REQUIRED
from tests.command_line import TQL_COMMAND, understand
from tests.test_layers import ALLOWED, MODULES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
CONSOLE = [line[2:].partition("   #")[0] for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
TREE = next(text for kind, text in BLOCKS if kind == "text")
BROWSER_INSTALL = "apt-get install -y -qq chromium chromium-driver"


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
    assert [arguments[0] for arguments in shown] == ["fit", "fit", "evaluate", "report", "export", "benchmark"]
    for arguments in shown:
        understand(monkeypatch, arguments)


def test_it_fits_on_a_page() -> None:
    assert len(README.splitlines()) <= 130


def test_the_map_has_one_line_a_package() -> None:
    assert sorted([*listed_packages(), "__main__"]) == sorted(ALLOWED)


def test_the_maps_order_is_that_of_imports() -> None:
    listed = listed_packages()
    for position, name in enumerate(listed):
        below = ALLOWED[name] & set(listed[position + 1 :])
        assert not below, f"the README lists {below} under {name}, which may import it"


def test_every_folder_and_link_shown_exists() -> None:
    folders = re.findall(r"^(\w+)/", TREE, flags=re.MULTILINE)
    assert {"tql_lightning", "callbacks", "tests"} <= set(folders)
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
    for document in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").glob("*.md"),
    ):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            assert target.startswith("https://") or (document.parent / target).is_file(), f"{document}: {target}"


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
