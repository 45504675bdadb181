"""The set-up's lock file holds everything that is installed but torch, each with hashes; and what an audit says."""

from __future__ import annotations

import ast
import re
import runpy
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = [ROOT / "locks" / "dev.txt", ROOT / "locks" / "tools.txt"]
audit = runpy.run_path(str(ROOT / "locks" / "audit.py"))


def locked(file: Path) -> dict[str, tuple[Requirement, list[str]]]:
    """Requirements and their hashes by name."""
    text = re.sub(r"#.*|\\\n", "", file.read_text())
    entries = [line.split(" --hash=") for line in map(str.strip, text.splitlines()) if line]
    found = {}
    for requirement, *hashes in [[re.sub(r"\s+", " ", part).strip() for part in entry] for entry in entries]:
        parsed = Requirement(requirement)
        found[canonicalize_name(parsed.name)] = (parsed, hashes)
    return found


def wanted(requirements: list[str]) -> dict[str, SpecifierSet]:
    """What is asked for by name, with what our own extras ask for."""
    found = {}
    for text in requirements:
        requirement = Requirement(text)
        if requirement.name == PROJECT["project"]["name"]:
            extras = PROJECT["project"]["optional-dependencies"]
            found |= wanted([each for extra in requirement.extras for each in extras[extra]])
        else:
            found[canonicalize_name(requirement.name)] = requirement.specifier
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_package_is_pinned_by_hash_and_none_comes_from_a_place(file: Path) -> None:
    packages = locked(file)
    assert len(packages) > 20
    for name, (requirement, hashes) in packages.items():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), name
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), name
    code = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert not [line for line in code if re.search(r"://|@ |^\s*-(?!-hash=)|\.\./|/", line.replace("--hash", ""))]


def test_the_lock_holds_what_the_project_asks_for() -> None:
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    packages = {name: requirement for name, (requirement, _) in locked(FILES[0]).items()}
    asked = wanted(project["dependencies"] + project["optional-dependencies"]["dev"] + groups["build"])
    asked |= wanted(PROJECT["build-system"]["requires"])
    asked |= wanted(PROJECT["tool"]["uv"]["dependency-metadata"][0]["requires-dist"])
    del asked["torch"]
    assert len(asked) > 25
    for name, specifier in asked.items():
        assert str(packages[name].specifier).removeprefix("==") in specifier, name
    for name, specifier in wanted(groups["tools"]).items():
        assert str(locked(FILES[1])[name][0].specifier).removeprefix("==") in specifier, name


def imported_packages(file: Path) -> set[str]:
    """Top-level names that a file imports anywhere, but for the standard library's and the project's own."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"benchmarks", "tests"}


def test_every_package_that_is_imported_is_declared() -> None:
    declared = wanted(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        declared |= wanted(extra)
    # Its logger says how to install trackio; ogbench brings mujoco.
    declared |= {"tql-lightning": SpecifierSet(), "trackio": SpecifierSet(), "mujoco": SpecifierSet()}
    distributions = packages_distributions()
    folders = [ROOT / name for name in ("tql_lightning", "callbacks", "tests", "benchmarks")]
    imported = {name for folder in folders for file in folder.rglob("*.py") for name in imported_packages(file)}
    assert {"numpy", "yaml"} <= imported
    assert [
        name
        for name in sorted(imported)
        if not {canonicalize_name(each) for each in distributions.get(name, [name])} & declared.keys()
    ] == []


def test_torch_alone_is_left_to_the_constraint_file() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert [Requirement(line).name for line in lines] == ["torch"]
    assert lines[0] == f"torch=={PROJECT['tool']['uv']['dependency-metadata'][0]['version']}"
    packages = locked(FILES[0])
    assert "torch" not in packages
    assert not [name for name in packages if name.startswith(("nvidia-", "cuda-"))]


def test_compromised_releases_of_lightning_can_be_neither_locked_nor_installed() -> None:
    (asked,) = [text for text in PROJECT["project"]["dependencies"] if Requirement(text).name == "lightning"]
    packages = locked(FILES[0])
    for release in ("2.6.2", "2.6.3"):
        assert release not in Requirement(asked).specifier
        assert {str(packages[name][0].specifier) for name in ("lightning", "pytorch-lightning")} != {f"=={release}"}


FOUND = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
SOUND = {"name": "b", "version": "1", "vulns": []}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1)"}


@pytest.mark.parametrize(
    ("report", "code", "message"),
    [
        (None, 2, "NOT DONE, pip-audit could not ask"),
        ([SOUND, SOUND], 0, "0 known vulnerabilities in 2 packages"),
        ([SOUND, FOUND], 1, "a 1: PYSEC-1, fixed in 2"),
        ([SOUND, UNKNOWN], 2, "NOT DONE for 1 of 2 packages"),
        ([SOUND], 2, "NOT DONE for 1 of 2 packages"),
        ([FOUND, UNKNOWN], 1, "NOT DONE for 1 of 2 packages"),
    ],
)
def test_an_audit_says_what_it_could_not_ask(report: Any, code: int, message: str) -> None:
    given, said = audit["verdict"](None if report is None else {"dependencies": report}, 2)
    assert given == code
    assert message in said


def test_an_audit_asks_about_every_package() -> None:
    asked = audit["pins"]([ROOT / "constraints.txt", *FILES])
    assert {"torch==2.13.0"} < set(asked)
    named = {pin.partition("==")[0] for pin in asked}  # of a package two versions may be locked, for two Pythons
    assert named == {*locked(FILES[0]), *locked(FILES[1]), "torch"}
