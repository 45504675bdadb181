"""Options and settings of every test."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", type=Path, default=GOLDEN, help="folder of golden cases, one folder each")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        folder: Path = metafunc.config.getoption("--golden")
        cases = sorted(path.parent for path in folder.glob("*/core.npz"))
        if not cases:
            raise pytest.UsageError(f"--golden: expected folders with a core.npz in {folder}, found none")
        metafunc.parametrize("golden_case", cases, ids=[case.name for case in cases], scope="session")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from more threads, and sums stay in one order."""
    torch.set_num_threads(1)
