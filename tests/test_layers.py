"""Packages import one way, and importing the project is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import tql_lightning

ROOT = Path(__file__).parents[1]
PACKAGE = "tql_lightning"

# Which packages each may import. A file directly in `tql_lightning/` counts as a package of its own.
ALLOWED: dict[str, set[str]] = {
    "batch": set(),
    "system": set(),
    "trust": set(),
    "nn": set(),
    "data": {"batch", "system", "trust"},
    "run": {"system", "trust"},
    "loggers": {"system", "run"},
    "training": {"batch", "data", "nn", "run", "system", "trust"},
    "report": {"run", "system", "trust"},
}
ALLOWED["algorithms"] = {"training", *ALLOWED["training"]}
ALLOWED["evaluation"] = {"algorithms", *ALLOWED["algorithms"]}
ALLOWED["online"] = {"evaluation", *ALLOWED["evaluation"]}
ALLOWED["export"] = {"evaluation", *ALLOWED["evaluation"]}
ALLOWED["benchmark"] = {"report", *ALLOWED["report"]}
ALLOWED["callbacks"] = {"loggers", "report", "evaluation", *ALLOWED["evaluation"]}
ALLOWED["testing"] = set(ALLOWED)
ALLOWED["cli"] = set(ALLOWED) - {"testing"}
ALLOWED["__main__"] = {"cli", "system"}


def module_parts(path: Path) -> tuple[str, ...]:
    """A file's dotted name without the project's, as parts; `callbacks/` counts as `tql_lightning/callbacks/`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1:] if parts[0] == PACKAGE else parts


def package_of(path: Path) -> str:
    """The package that a file belongs to."""
    return module_parts(path)[0]


@cache
def imports_in(path: Path) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """Import statements anywhere in a file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return tuple(node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


def imported(path: Path) -> set[str]:
    """Packages of the project that a file imports anywhere."""
    names: set[str] = set()
    for node in imports_in(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names |= {node.module} if node.module != PACKAGE else {f"{PACKAGE}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}.")}


FILES = [
    *(
        path
        for path in sorted((ROOT / PACKAGE).rglob("*.py"))
        if path.parent != ROOT / PACKAGE or path.stem != "__init__"
    ),
    *sorted((ROOT / "callbacks").rglob("*.py")),
]
FILES = [path for path in FILES if ROOT / PACKAGE / "callbacks" not in path.parents]  # the link to the latter
MODULES = {".".join((PACKAGE, *module_parts(path))): path for path in FILES}


def test_every_package_has_its_place_in_the_table() -> None:
    assert {package_of(path) for path in FILES} == set(ALLOWED)


def test_the_table_has_no_circle() -> None:
    left = dict(ALLOWED)
    while left:
        lowest = {name for name, below in left.items() if not below & set(left) - {name}}
        assert lowest, f"circle among {sorted(left)}"
        left = {name: below for name, below in left.items() if name not in lowest}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_the_table_allows(package: str) -> None:
    for path in FILES:
        if package_of(path) == package:
            assert imported(path) <= ALLOWED[package] | {package}, path


def test_the_modules_of_a_package_import_each_other_without_circles() -> None:
    left = {name: (_modules(path) & set(MODULES)) - {name} for name, path in MODULES.items()}
    while left:
        free = {name for name, targets in left.items() if not targets & set(left)}
        assert free, f"circle among {sorted(left)}"
        left = {name: targets for name, targets in left.items() if name not in free}


def _modules(path: Path) -> set[str]:
    """Modules that a file imports, by dotted name; of `from a import b` both a and a.b."""
    names: set[str] = set()
    for node in imports_in(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_nothing_imports_callbacks_as_a_top_level_package() -> None:
    folders = (ROOT / PACKAGE, ROOT / "callbacks", ROOT / "tests")
    paths = [path for folder in folders for path in folder.rglob("*.py") if "callbacks" in path.read_text()]
    assert paths
    for path in paths:
        for node in imports_in(path):
            roots = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert "callbacks" not in {(root or "").split(".")[0] for root in roots}, path


def run_python(code: str) -> list[str]:
    """Words that a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def test_importing_the_package_is_fast_and_pulls_in_nothing_heavy() -> None:
    took, *heavy = run_python(
        "import sys, time; start = time.process_time(); import tql_lightning; took = time.process_time() - start;"
        "heavy = {'torch', 'lightning', 'gymnasium', 'matplotlib', 'tensorboard', 'ogbench', 'h5py', 'minari'};"
        "print(took, *sorted(heavy & set(sys.modules)))"
    )
    assert heavy == []
    assert float(took) < 3.0  # of the processor's time, which other programs do not lengthen


def test_the_algorithm_pulls_in_no_environment_or_logger() -> None:
    heavy = run_python(
        "import sys; from tql_lightning import TQL, OfflineDataModule, RolloutResult;"
        "print(*sorted({'gymnasium', 'tensorboard', 'ogbench', 'h5py'} & set(sys.modules)))"
    )
    assert heavy == []


def test_every_public_name_stays_what_it_is_once_its_module_is_loaded() -> None:
    for _ in range(2):
        for name in tql_lightning.__all__:
            assert getattr(tql_lightning, name).__name__.rpartition(".")[2] == name


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TQQ'"):
        tql_lightning.TQQ  # noqa: B018
