"""Either of two processes that train together is killed; the other ends, and continued the run is the whole one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from tests.attack.test_kills import CONFIG, outcome
from tests.command_line import PATIENCE
from tql_lightning.run.checkpoint_io import read_checkpoint

pytestmark = pytest.mark.slow

BOUND = 60.0  # seconds after the kill in which the other process ends


class KilledAt(Callback):
    """Kills the process of a rank in an update after a checkpoint."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 10 and trainer.global_rank == self.rank:
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def fit(folder: Path, *more: str) -> tuple[int, str]:
    """Exit code and messages of two processes; fails where one of them is left."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "tql_lightning", "fit", "--config", "config.yaml"]
    command += ["--data.dataset=tests.toy.toy_dataset", "--trainer.devices=2", *more]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with (folder / "messages").open("w+") as messages:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=messages, stderr=messages, start_new_session=True
        )
        try:
            code = process.wait(PATIENCE)
            ended = time.monotonic()
            while _group_lives(process.pid):
                assert time.monotonic() - ended < BOUND, "a process is left"
                time.sleep(0.2)
        finally:
            if _group_lives(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
        messages.seek(0)
        return code, messages.read()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    code, messages = fit(folder)
    assert code == 0, messages
    return outcome(folder / "run")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_other_and_the_continued_run_is_the_whole_one(
    rank: int, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    killed = json.dumps({"class_path": f"{__name__}.KilledAt", "init_args": {"rank": rank}})
    code, messages = fit(tmp_path, f"--trainer.callbacks+={killed}")
    assert time.time() - (tmp_path / "killed").stat().st_mtime < BOUND
    assert code == (2 if rank else -signal.SIGKILL)
    assert "another process of this run has ended, so the run cannot go on" in messages
    assert "Traceback" not in messages, messages
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 8
    code, messages = fit(tmp_path, "--ckpt_path=last")
    assert code == 0, messages
    found = outcome(tmp_path / "run")
    assert found.keys() == uninterrupted.keys()
    assert [key for key in found if found[key] != uninterrupted[key]] == []
