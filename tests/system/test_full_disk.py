"""Failed writes: existing files stay complete, a warning is given, and training goes on to its end."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.summary.writer import event_file_writer

from tests import environments, toy  # noqa: F401  (registers)
from tests.command_line import PATIENCE, TINY, TQL_COMMAND
from tests.toy import toy_dataset, toy_model
from tql_lightning.callbacks.best_checkpoint import BestCheckpoint
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.callbacks.plots import TrainingPlots
from tql_lightning.callbacks.q_landscape import QLandscape
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.cli.main import main
from tql_lightning.data.sources.npz import save_npz
from tql_lightning.data.sources.schema import fields_of
from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.loggers.tensorboard_logger import ContinuedTensorBoardLogger
from tql_lightning.run.checkpoint_io import CheckpointWriteError, WholeCheckpointIO, read_checkpoint, write_checkpoint
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.testing.ports import quiet_port

SWING = "tests.environments:Swing-v0"


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Limits the size of this process's files; the kernel fails a write in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FullBetween(Callback):
    """Limits the size of files between two updates."""

    def __init__(self, first: int, last: int, size: int = 0) -> None:
        self.first, self.last, self.size = first, last, size
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:  # type: ignore[override]
        full = self.first <= trainer.global_step < self.last
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size if full else self.before[0], self.before[1]))


def fit(*arguments: Any, **settings: Any) -> Trainer:
    """Calls `toy.fit` and restores the limit, since pytest's output may go into a file."""
    with no_file_above(resource.getrlimit(resource.RLIMIT_FSIZE)[0]):
        return toy.fit(*arguments, **settings)


@pytest.mark.parametrize("room", [0, 100, 2_000, 30_000])
def test_a_checkpoint_that_has_no_room_leaves_the_old_one_and_says_how_much_is_free(room: int, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"state_dict": {}, "global_step": 1}, path)
    with no_file_above(room), pytest.raises(CheckpointWriteError) as raised:
        write_checkpoint({"state_dict": {"weight": torch.zeros(10_000)}, "global_step": 2}, path)
    assert f"checkpoint {path} cannot be written (File too large; " in str(raised.value)
    assert "MB are free there" in str(raised.value)
    assert read_checkpoint(path)["global_step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_training_goes_on_past_a_full_disk_with_the_last_good_checkpoint_and_all_metrics(tmp_path: Path) -> None:
    last = LastCheckpoint(str(tmp_path), every_n_updates=5)
    logger = ContinuedCSVLogger(str(tmp_path), flush_logs_every_n_steps=1)
    seen: dict[int, int] = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:  # type: ignore[override]
            if trainer.global_step:
                seen[trainer.global_step] = read_checkpoint(tmp_path / "last.ckpt")["global_step"]

    callbacks = [FullBetween(5, 15, size=1500), last, Look()]
    settings: dict[str, Any] = {"plugins": WholeCheckpointIO(), "logger": logger, "log_every_n_steps": 5}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, toy_model(), 20, callbacks, **settings)
    said = [str(warning.message) for warning in caught]
    assert [message.split(" is not saved")[0] for message in said if "is not saved" in message] == [
        "update 10",
        "update 15",
    ]
    kept = f"{tmp_path / 'last.ckpt'} is kept, training goes on"
    assert [kept in message for message in said if "not saved" in message] == [True, True]
    assert len([message for message in said if "metrics.csv cannot be written" in message]) == 1
    assert seen == {5: 5, 10: 5, 15: 5}
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 20
    assert read_metrics(tmp_path / "metrics.csv")["train/td_loss"][0] == [5, 10, 15, 20]
    assert last.last_model_path == str(tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "previous.ckpt")["global_step"] == 5


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_at_the_end_or_where_wanted(tmp_path: Path) -> None:
    with pytest.raises(CheckpointWriteError, match=r"update 10 is not saved: .*(?s:.*)last\.ckpt is kept: make room"):
        fit(tmp_path, toy_model(), 10, [FullBetween(6, 99), LastCheckpoint(str(tmp_path), 6)], updates_per_step=2)
    stops = LastCheckpoint(str(tmp_path / "other"), 5, if_unwritable="stop")
    with pytest.raises(CheckpointWriteError, match=r"update 5 is not saved: (?s:.*)there is no earlier one"):
        fit(tmp_path, toy_model(), 20, [FullBetween(0, 5), stops])
    with pytest.raises(ValueError, match=r"LastCheckpoint.if_unwritable: expected continue or stop, found maybe"):
        LastCheckpoint(if_unwritable="maybe")  # type: ignore[arg-type]


def test_a_logger_that_cannot_write_costs_no_checkpoint(tmp_path: Path) -> None:
    class Full(DummyLogger, Callback):
        full = False

        def on_train_start(self, *_: Any) -> None:
            self.full = True

        def save(self) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")

        def finalize(self, status: str) -> None:
            """Lightning's saves."""

    logger = Full()
    with pytest.warns(UserWarning, match=r"cannot be written \(No space left on device; .*; training goes on"):
        fit(tmp_path, toy_model(), 5, [logger, LastCheckpoint(str(tmp_path), 5)], logger=logger, limit_val_batches=0)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 5


def test_metrics_that_cannot_be_written_are_an_error_at_the_end_of_a_training_that_went_well(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"logger": ContinuedCSVLogger(str(tmp_path)), "log_every_n_steps": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(OSError, match=r"metrics\.csv: 3 rows of metrics could not be written"):
            fit(tmp_path, toy_model(), 10, [FullBetween(5, 99)], **settings)
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.slow
def test_observers_that_cannot_write_warn_and_the_best_stays_the_one_that_is_kept(tmp_path: Path) -> None:
    evaluation, best = RolloutEvaluation(2, 5, env_id=SWING), BestCheckpoint(str(tmp_path / "checkpoints"))
    callbacks = [FullBetween(0, 10), evaluation, QLandscape(every_n_updates=5), TrainingPlots(), best]
    kept: list[Any] = []
    consider = best.consider

    def looked_at(*arguments: Any) -> None:
        consider(*arguments)
        kept.append((best.best_model_path, best.best_model_score, list((tmp_path / "checkpoints").glob("*"))))

    best.consider = looked_at  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, toy_model(), 15, callbacks, logger=ContinuedCSVLogger(str(tmp_path)))
    said = [str(warning.message) for warning in caught]
    assert len([message for message in said if "the best evaluation so far, of update" in message]) == 2
    assert [message for message in said if "update_000000005.json cannot be written" in message]
    assert len(list((tmp_path / "evaluations").glob("*.json"))) == 2  # of updates 0 and 15
    assert kept[:2] == [("", None, [])] * 2
    assert Path(kept[2][0]).is_file()


def join_threads_but(others: set[threading.Thread]) -> None:
    """Waits for new threads, since an error in one is a warning in the test that runs then."""
    for thread in set(threading.enumerate()) - others:
        thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_tensorboard_that_cannot_write_is_left_out_and_taken_up_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    others = set(threading.enumerate())
    logger = ContinuedTensorBoardLogger(str(tmp_path))
    logger.log_metrics({"loss": 1.0}, 1)
    logger.save()
    logger.log_metrics({"loss": 2.0}, 2)
    with no_file_above(10), pytest.warns(UserWarning, match=r"tensorboard.* cannot be written .*goes on without"):
        logger.save()
    logger.log_metrics({"loss": 3.0}, 3)
    logger.finalize("success")
    join_threads_but(others)
    files = sorted((tmp_path / "tensorboard").glob("events*"), key=lambda path: path.stat().st_mtime)
    shown = [event.step for file in files for event in _scalars(EventAccumulator(str(file)).Reload())]
    assert sorted(shown) == [1, 3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_that_cannot_even_begin_is_named(tmp_path: Path) -> None:
    with no_file_above(0), pytest.raises(OSError, match=r"\[Errno 27\] File too large: '.*tensorboard/?'"):
        _ = ContinuedTensorBoardLogger(str(tmp_path)).experiment


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_tensorboard_cannot_write_is_told_of_however_late_its_thread_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[threading.Thread] = []

    class Late(event_file_writer._AsyncWriterThread):  # type: ignore[misc]
        """Delays its report of an error."""

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "exception" and value is not None:
                failed.append(self)
                time.sleep(0.3)
            super().__setattr__(name, value)

    monkeypatch.setattr(event_file_writer, "_AsyncWriterThread", Late)
    for write in (ContinuedTensorBoardLogger.save, partial(ContinuedTensorBoardLogger.finalize, status="success")):
        logger = ContinuedTensorBoardLogger(str(tmp_path))
        logger.log_metrics({"loss": 1.0}, 1)
        logger.save()
        logger.log_metrics({"loss": 2.0}, 2)
        with no_file_above(10), pytest.warns(UserWarning, match="goes on without TensorBoard"):
            write(logger)
    assert len(failed) >= 2
    for thread in failed:
        thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_hides_what_a_killed_run_logged_also_where_the_disk_was_full_at_first(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    others = set(threading.enumerate())
    killed = ContinuedTensorBoardLogger(str(tmp_path))
    for step in (1, 2, 3):
        killed.log_metrics({"loss": 0.0}, step)
    killed.save()
    killed.finalize("killed")  # its thread ends, and has nothing more to write
    logger = ContinuedTensorBoardLogger(str(tmp_path))
    with no_file_above(10), pytest.warns(UserWarning, match="goes on without TensorBoard"):
        logger.continue_from(1)
    logger.log_metrics({"loss": 1.0}, 2)
    logger.finalize("success")
    join_threads_but(others)
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [(1, 0.0), (2, 1.0)]


def _scalars(events: Any) -> list[Any]:
    return events.Scalars("loss") if "loss" in events.Tags()["scalars"] else []


TWO_PROCESSES = """
import sys, warnings
from pathlib import Path
from tests.system.test_full_disk import FullBetween
from tests.toy import fit, toy_model
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.run.checkpoint_io import WholeCheckpointIO

class FullOfTheFirst(FullBetween):
    def on_train_batch_start(self, trainer, *arguments):
        if trainer.is_global_zero:
            super().on_train_batch_start(trainer, *arguments)

if __name__ == "__main__":
    folder, until = Path(sys.argv[1]), int(sys.argv[2])
    callbacks = [FullOfTheFirst(5, until), LastCheckpoint(str(folder), 5)]
    fit(folder, toy_model(), 15, callbacks, plugins=WholeCheckpointIO(), strategy="ddp", devices=2)
    print("ended")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("until", "code", "saved"), [(10, 0, 15), (99, 1, 5)])
def test_two_processes_know_that_the_first_cannot_write(until: int, code: int, saved: int, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TWO_PROCESSES)
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "run"), str(until)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MASTER_PORT": str(quiet_port())}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert finished.returncode == code, finished.stderr
    assert "update 10 is not saved: checkpoint " in finished.stderr
    assert ("ended" in finished.stdout) == (code == 0)
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == saved


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("file systems can be mounted by root only")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.usefixtures("command_folder")
def test_a_disk_that_is_really_full_ends_the_command_in_an_error_with_a_whole_checkpoint(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(small_disk)
    (small_disk / "filler").write_bytes(bytes(1_150_000))  # leaves room for one checkpoint, not for two
    arguments = ["--config", "../tiny.yaml", "--data.dataset=tests.toy.toy_dataset", "--trainer.logger=false"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["fit", *arguments, "--trainer.max_steps=30"]) == 2
    said = [str(warning.message) for warning in caught]
    assert "(No space left on device; 0.4 MB are free there)" in said[0]
    assert [message.partition(":")[0] for message in said] == ["update 20 is not saved", "update 30 is not saved"]
    message = capsys.readouterr().err
    assert "tql: update 30 is not saved: checkpoint " in message
    assert "last.ckpt is kept: make room, and continue from it with --ckpt_path=last" in message
    assert read_checkpoint(Path("run/checkpoints/last.ckpt"))["global_step"] == 10
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["last.ckpt"]
    Path("filler").unlink()
    assert main(["fit", *arguments, "--trainer.max_steps=30", "--ckpt_path=last"]) == 0


@pytest.mark.slow
def test_output_that_cannot_be_written_does_not_end_training(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [TQL_COMMAND, "fit", "--config", "tiny.yaml", "--data.dataset=tests.toy.toy_dataset"]
    command += ["--trainer.callbacks+=tql_lightning.callbacks.progress.UpdateProgressBar", "--trainer.logger=false"]
    with Path("/dev/full").open("w") as full:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, stdout=full, stderr=full, check=False)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 20
    assert ended.returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_output_nobody_reads_ends_quietly(unbuffered: str, tmp_path: Path) -> None:
    arrays, settings = fields_of(toy_dataset())
    save_npz(tmp_path / "toy.npz", **arrays, **settings)
    read, write = os.pipe()
    os.close(read)
    command = [TQL_COMMAND, "data", "inspect", "toy.npz"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with os.fdopen(write, "w") as pipe:
        ended = subprocess.run(command, cwd=tmp_path, stdout=pipe, stderr=subprocess.PIPE, env=environment, check=False)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")
