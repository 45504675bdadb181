"""Options and settings of every test."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

# Longest first, so that two workers that take whole files end together; the rest follows in its usual order.
LONGEST = (
    *("test_cli.py", "test_configs.py", "test_collect.py", "test_processes.py", "test_export.py", "test_errors.py"),
    *("test_triton_attention.py", "test_readme.py", "test_precision.py", "test_resuming.py", "test_observers.py"),
    *("test_policy.py", "test_ogbench.py", "test_sharding.py", "test_full_disk.py", "test_episode_videos.py"),
    "test_tql.py",
)
GOLDEN = Path(__file__).parent / "golden"
REACHED = pytest.StashKey[dict[str, dict[str, float]]]()  # largest differences from the release: case -> kind -> size


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", type=Path, default=GOLDEN, help="folder of golden cases, one folder each")
    parser.addoption("--reached", action="store_true", help="print the largest differences from the golden numbers")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REACHED] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    cases = config.stash[REACHED]
    if not config.getoption("--reached") or not cases:
        return
    kinds = sorted({kind for reached in cases.values() for kind in reached})
    rows = [
        [kind, *(f"{reached[kind]:.1e}" if kind in reached else "" for reached in cases.values())] for kind in kinds
    ]
    for row in (["largest difference", *cases], ["---"] * (1 + len(cases)), *rows):
        terminalreporter.write_line(f"| {' | '.join(row)} |")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method_case" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden")
        from tests.golden_methods import METHODS

        cases = sorted(path.parent for path in folder.rglob("core.npz") if method_of(path.parent) in METHODS)
        names = [str(case.relative_to(folder)) for case in cases]
        metafunc.parametrize("method_case", cases, ids=names, scope="session")
    if "golden_case" in metafunc.fixturenames:
        folder: Path = metafunc.config.getoption("--golden")
        cases = sorted(path.parent for path in folder.glob("*/core.npz") if method_of(path.parent) is None)
        if not cases:
            raise pytest.UsageError(f"--golden: expected folders with a core.npz in {folder}, found none")
        metafunc.parametrize("golden_case", cases, ids=[case.name for case in cases], scope="session")


def method_of(case: Path) -> str | None:
    """The method that a golden case names; None for TQL."""
    settings = json.loads((case / "config.json").read_text())
    method: str | None = settings.get("algorithm", settings.get("system"))
    return method


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from more threads, and sums stay in one order."""
    torch.set_num_threads(1)


@pytest.fixture
def command_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of an in-process command line, with tiny.yaml in it; what it changes is put back."""
    from tests.command_line import TINY

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["tql"])
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path
