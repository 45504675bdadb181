"""One small OGBench dataset, collected from the real environment, for every test that needs one."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tql_lightning.data.collecting.collect import collect
from tql_lightning.data.sources.ogbench import dataset_file

DISPLAY = ".*DISPLAY environment variable is missing"


@pytest.fixture(scope="session")
def play_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a cube-single play dataset: 100 transitions and as many held out."""
    folder = tmp_path_factory.mktemp("ogbench")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=DISPLAY)
        collect("cube-single", transitions=100, workers=1, output=str(dataset_file("cube-single-play", str(folder))))
    return folder
