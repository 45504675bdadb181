"""Provenance of a run: peak memory of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRINTS_OWN = "from tql_lightning.run.provenance import peak_memory_bytes; print(peak_memory_bytes())"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system tells nothing better than getrusage")
def test_a_process_is_not_charged_with_the_memory_of_what_started_it() -> None:
    held = bytearray(300_000_000)
    printed = subprocess.run([sys.executable, "-c", PRINTS_OWN], capture_output=True, text=True, check=True).stdout
    assert 5_000_000 < int(printed) < len(held) / 2
