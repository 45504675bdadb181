"""Collections that were interrupted or killed, continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.collecting.test_collect import equal_files
from tql_lightning.data.collecting.behaviours import random_behaviour
from tql_lightning.data.collecting.collect import collect
from tql_lightning.data.collecting.partial import KeptEpisodes
from tql_lightning.data.sources.npz import read_npz
from tql_lightning.data.transitions import DatasetError

calls: list[None] = []


def stopping(action_space: Any, rng: np.random.Generator) -> Callable[[Any], Any]:
    """Acts at random; ends the fourth episode by what $STOP_BY says."""
    calls.append(None)
    if len(calls) == 4 and os.environ.get("STOP_BY") == "interrupt":
        raise KeyboardInterrupt
    if len(calls) == 4 and os.environ.get("STOP_BY") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return random_behaviour(action_space, rng)


def test_an_interrupted_collection_continues_to_the_very_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"environment": "Pendulum-v1", "transitions": 1400, "seed": 5, "behaviour": stopping}
    calls[:] = [None] * 4
    expected = collect(**settings, workers=1, output=str(tmp_path / "whole.npz"))
    path = tmp_path / "p.npz"
    for kept in (3, 6):
        calls.clear()
        monkeypatch.setenv("STOP_BY", "interrupt")
        with pytest.raises(KeyboardInterrupt):
            collect(**settings, workers=1, output=str(path))
        assert not path.exists()
        assert sum(read_npz(file)["lengths"].sum() for file in partial_files(path)) == 200 * kept
    with pytest.raises(
        DatasetError, match=r"p.npz.partial holds episodes .* seed 5 \(now 6\); continue it with the same"
    ):
        collect(**settings | {"seed": 6}, workers=1, output=str(path))
    monkeypatch.delenv("STOP_BY")
    capsys.readouterr()
    found = collect(**settings, workers=2, output=str(path))
    assert "continuing:  86%" in capsys.readouterr().err
    assert equal_files(found.path, expected.path)
    assert (found.mean_return, found.episodes) == (expected.mean_return, expected.episodes)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.npz", "whole.npz"]


def test_a_killed_collection_keeps_what_it_wrote_and_can_be_started_over(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    code = (
        "from tql_lightning.data.collecting import partial\n"
        "from tql_lightning.data.collecting.collect import collect\n"
        "partial.SECONDS_BETWEEN_PARTS = 0.0\n"
        f"collect('Pendulum-v1', 1400, 5, 1, {str(path)!r}, behaviour='tests.data.collecting.test_partial.stopping')"
    )
    environment = os.environ | {"STOP_BY": "kill"}
    root = Path(__file__).parents[3]
    killed = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [int(read_npz(file)["lengths"].sum()) for file in partial_files(path)] == [200] * 3
    calls[:] = [None] * 4
    continued = collect("Pendulum-v1", 1400, 5, 1, str(path), behaviour=stopping)
    fresh = collect("Pendulum-v1", 1400, 5, 1, str(tmp_path / "fresh.npz"), behaviour=stopping)
    assert equal_files(continued.path, fresh.path)


def test_what_was_kept_with_other_settings_is_dropped_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    kept = KeptEpisodes(path, {"seed": 1})
    kept.add({"actions": np.zeros((2, 1))})
    kept.write()
    assert len(KeptEpisodes(path, {"seed": 1}).load()) == 1
    assert KeptEpisodes(path, {"seed": 2}, overwrite=True).load() == []
    assert list(tmp_path.iterdir()) == []


def partial_files(output: Path) -> list[Path]:
    return sorted(output.with_name(f"{output.name}.partial").glob("episodes_*.npz"))
