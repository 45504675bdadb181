"""Checkpoints to continue from, also after a signal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.toy import fit, toy_model
from tql_lightning.callbacks.checkpointing import GracefulInterrupt, LastCheckpoint
from tql_lightning.run.checkpoint_io import WholeCheckpointIO, read_checkpoint
from tql_lightning.training.resuming import newest_whole


class SignalAt(Callback):
    """Sends this process a signal in the middle of a chunk, as a user would."""

    def __init__(self, update: int, number: signal.Signals) -> None:
        self.update, self.number = update, number

    def on_before_optimizer_step(self, trainer, *_) -> None:  # type: ignore[no-untyped-def]
        if trainer.global_step == self.update:
            os.kill(os.getpid(), self.number)


def test_the_last_checkpoint_is_that_of_the_last_update(tmp_path: Path) -> None:
    model = toy_model()
    fit(tmp_path, model, updates=12, callbacks=[LastCheckpoint(str(tmp_path), every_n_updates=5)])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 12
    assert all(torch.equal(value, saved["state_dict"][name]) for name, value in model.state_dict().items())
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_after_the_update_in_hand_and_the_run_continues_exactly(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = toy_model()
    fit(tmp_path / "whole", whole, updates=20)
    interrupt, folder = GracefulInterrupt(), tmp_path / "part"
    first = fit(
        folder,
        toy_model(),
        updates=20,
        callbacks=[SignalAt(7, number), interrupt, LastCheckpoint(str(folder), every_n_updates=5)],
    )
    assert first.global_step == 8
    assert interrupt.received == number
    assert signal.getsignal(number) != interrupt._handle
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert last_line.startswith(f"Stopped by {number.name} after update 8")
    assert str(folder / "last.ckpt") in last_line
    assert "--ckpt_path=last" in last_line
    rest = toy_model()
    callbacks: list[Callback] = [LastCheckpoint(str(folder), every_n_updates=5)]
    fit(folder, rest, updates=20, callbacks=callbacks, ckpt_path=folder / "last.ckpt")
    assert all(torch.equal(value, rest.state_dict()[name]) for name, value in whole.state_dict().items())


def test_an_interval_that_chunks_would_miss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"LastCheckpoint.every_n_updates: expected a multiple .*=5, found 7"):
        fit(tmp_path, toy_model(), updates=5, callbacks=[LastCheckpoint(str(tmp_path), every_n_updates=7)])
    with pytest.raises(ValueError, match=r"LastCheckpoint.every_n_updates: expected at least 1"):
        LastCheckpoint(every_n_updates=0)


class Killed(Callback):
    """Ends training after a chunk, with nothing saved."""

    def on_train_batch_end(self, *_) -> None:  # type: ignore[no-untyped-def]
        raise RuntimeError("killed")


@pytest.mark.parametrize("named", ["previous", "best"])
def test_a_run_that_goes_on_from_before_its_last_checkpoint_never_goes_on_from_that(
    named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(updates: int, ckpt_path: Path | None, *callbacks: Callback) -> Trainer:
        last = LastCheckpoint(str(tmp_path), every_n_updates=10)
        return fit(tmp_path, toy_model(), updates, [*callbacks, last], ckpt_path, plugins=WholeCheckpointIO())

    last, path = tmp_path / "last.ckpt", tmp_path / f"{named}.ckpt"
    run(5, None).save_checkpoint(tmp_path / "best.ckpt")
    run(10, tmp_path / "best.ckpt")
    run(20, last)
    with pytest.raises(RuntimeError, match="killed"):
        run(30, path, Killed())
    with pytest.warns(UserWarning, match=r"last\.ckpt: no such file"):
        assert newest_whole([last])[0] == path
    update = 5 if named == "best" else 10
    assert f"{last}: made after update {update}, which the run continues from; moved" in caplog.text
    found = {each.name: read_checkpoint(each)["global_step"] for each in (tmp_path / "superseded").iterdir()}
    assert found == {"last.ckpt": 20} | ({"previous.ckpt": 10} if named == "best" else {})
