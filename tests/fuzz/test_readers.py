"""No file makes a reader raise what is not its own error: some that hypothesis makes, and those found before."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.readers import attempt, readers

CORPUS = Path(__file__).parent / "corpus"
READERS = readers()
EXAMPLES = {"config": 2, "npz": 150, "hdf5": 60, "environment": 10, "baselines": 10, "metrics": 20}


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(name: str, tmp_path: Path) -> None:
    attempt(READERS[name], tmp_path, READERS[name].whole(), pass_over=False)


@pytest.mark.parametrize("name", READERS)
def test_only_errors_with_a_name_come_out(name: str, tmp_path: Path) -> None:
    @settings(
        max_examples=EXAMPLES.get(name, 40),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def everything(data: st.DataObject) -> None:
        attempt(READERS[name], tmp_path, data.draw(READERS[name].files))

    everything()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_before_stays_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(READERS[path.parent.name].named):
        attempt(READERS[path.parent.name], tmp_path, path.read_bytes(), pass_over=False)
