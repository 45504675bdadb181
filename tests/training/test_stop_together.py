"""A stop that one of several processes decides on stops all of them, after the same update."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from tests.command_line import PATIENCE
from tests.toy import fit, toy_model

MOMENTS = ("on_train_batch_end", "on_validation_end")


class StopsOnOne(Callback):
    """Asks for the end of training after update 10 on the second process alone."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def _stop(self, trainer: Trainer, moment: str) -> None:
        if moment == self.moment and trainer.global_rank == 1 and trainer.global_step == 10:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # type: ignore[override]
        self._stop(trainer, "on_train_batch_end")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:  # type: ignore[override]
        self._stop(trainer, "on_validation_end")


def train(folder: Path, moment: str) -> None:
    trainer = fit(folder, toy_model(), 40, [StopsOnOne(moment)], devices=2, strategy="ddp", val_check_interval=2)
    (folder / f"{trainer.global_rank}.txt").write_text(str(trainer.global_step))


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stop_on_one_process_stops_both_after_the_same_update(moment: str, tmp_path: Path) -> None:
    code = f"from tests.training.test_stop_together import train, Path; train(Path({str(tmp_path)!r}), {moment!r})"
    script = tmp_path / "script.py"  # Lightning starts the second process by the same command
    script.write_text(code)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["10", "10"]
