"""The documentation site is refused with a broken link, or while a public name is on no page."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_layers import ROOT

LINKED = ("benchmarks", "callbacks", "conf", "tql_lightning", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
FAULTS = {
    "broken link": ("faq.md", "(loggers.md)", "(logers.md)", "target is not found"),
    "broken anchor": ("faq.md", "#it-learns-badly", "#it-learns-well", "does not contain an anchor"),
    "name without documentation": (
        "api.md",
        "::: tql_lightning.Policy\n",
        "",
        "no page documents tql_lightning.Policy",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_documentation_ends_its_build(fault: str, tmp_path: Path) -> None:
    page, good, bad, message = FAULTS[fault]
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for name in LINKED:
        (tmp_path / name).symlink_to(ROOT / name)
    path = tmp_path / "docs" / page
    assert good in path.read_text()
    path.write_text(path.read_text().replace(good, bad))
    assert "mkdocs build --strict\n" in (ROOT / "Makefile").read_text()  # --quiet would hide warnings from --strict
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert message in finished.stderr
