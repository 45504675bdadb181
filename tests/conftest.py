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
    *("test_configs.py", "test_cli.py", "test_resuming.py", "test_docs.py", "test_unchecked_settings.py"),
    *("test_contracts.py", "test_own_algorithm.py", "test_model.py", "test_out_of_range.py", "test_plain_output.py"),
    *("test_errors.py", "test_exact_resume.py", "test_stock_callbacks.py", "test_observers.py", "test_torch_file.py"),
    *("test_collector.py", "test_pictures.py", "test_mistakes.py", "test_ogbench.py", "test_examples.py"),
    *("test_export.py", "test_full_disk.py", "test_collect.py", "test_readme.py"),
)
GOLDEN = Path(__file__).parent / "golden"
TQL_CASES, METHODS_CASES = (Path(__file__).parent / name for name in ("test_golden.py", "test_golden_methods.py"))
REACHED = pytest.StashKey[dict[str, dict[str, float]]]()  # largest differences from the release: case -> kind -> size


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", type=Path, default=GOLDEN, help="folder of golden cases, one folder each")
    parser.addoption("--golden-long", type=Path, default=None, help="folder of the release's whole runs")
    parser.addoption("--reached", action="store_true", help="print the largest differences from the golden numbers")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REACHED] = {}
    if any(Path(argument).resolve() == TQL_CASES for argument in config.args):
        config.args.append(str(METHODS_CASES))  # one file asks for the cases of every method


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not _has_no_case(item)]
    order = {name: position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def _has_no_case(item: pytest.Item) -> bool:
    """Whether a folder of golden cases holds none of the method that a test is about."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return any(not isinstance(parameters.get(name, Path()), Path) for name in ("golden_case", "method_case"))


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
    if not {"method_case", "golden_case"} & set(metafunc.fixturenames):
        return
    from tests.golden_methods import METHODS

    folder: Path = metafunc.config.getoption("--golden")
    found = {path.parent: method_of(path.parent) for path in sorted(folder.rglob("core.npz"))}
    cases = {
        "golden_case": [case for case, method in found.items() if method is None],
        "method_case": [case for case, method in found.items() if method in METHODS],
    }
    if not any(cases.values()):
        raise pytest.UsageError(f"--golden: expected folders with a core.npz in {folder}, found none")
    for name in cases.keys() & set(metafunc.fixturenames):
        names = [str(case.relative_to(folder)) for case in cases[name]]
        metafunc.parametrize(name, cases[name], ids=names, scope="session")


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
