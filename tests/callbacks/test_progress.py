"""The progress bar in a file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from tests.toy import fit, toy_model
from tql_lightning.callbacks.progress import UpdateProgressBar


def test_a_file_gets_no_line_for_every_update(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tql_lightning.callbacks.progress.SECONDS_IN_A_FILE", math.inf)  # however long 60 updates take
    monkeypatch.setattr(Tqdm, "monitor_interval", 0)  # no thread that redraws bars which have long stood still
    fit(tmp_path, toy_model(), 60, [UpdateProgressBar()], updates_per_step=1, enable_progress_bar=True)
    lines = capsys.readouterr().out.replace("\r", "\n").split("\n")
    bars = [line for line in lines if line.startswith("Training")]
    assert "60/60" in bars[-1]
    assert len(bars) < 10
