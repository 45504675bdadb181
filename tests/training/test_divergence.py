"""Training that diverges stops, says where, keeps what it was given, and spoils no checkpoint."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision

from tests.toy import fit, toy_dataset, toy_model
from tql_lightning import TQL, TransitionDataset
from tql_lightning.batch import at_update
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.cli.main import main
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.run.checkpoint_io import WholeCheckpointIO, read_checkpoint
from tql_lightning.training.divergence import DivergenceWatch, TrainingDivergedError, read_minibatches

DOCUMENT = (Path(__file__).parents[2] / "docs" / "debug.md").read_text()
SPIKE = 33  # row of a reward whose squared error no float32 can hold


def spiked_dataset(size: int = 200) -> TransitionDataset:
    """The toy's transitions with one reward that is finite and far too large."""
    dataset = toy_dataset(size)
    rewards = np.array(dataset.rewards)
    rewards[SPIKE] = 1e30
    return replace(dataset, rewards=rewards)


def first_spiked_update(batch_size: int) -> int:
    batches, _ = TransitionSampler(spiked_dataset(), batch_size, seed=0).chunk(0, 1000)
    return int((batches.rewards > 1e29).any(dim=-1).nonzero()[0])


def finite(path: Path) -> bool:
    return all(value.isfinite().all() for value in read_checkpoint(path)["state_dict"].values())


def test_a_run_that_diverges_can_be_replayed_to_the_update_and_the_loss(
    command_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = first_spiked_update(batch_size=8)
    assert wrong == 22  # else other figures would do here as well
    begun = ["fit", "--config", "tiny.yaml", "--data.dataset=tests.training.test_divergence.spiked_dataset"]
    settings = ["--trainer.max_steps=200", "--trainer.log_every_n_steps=200", "--data.updates_per_step=5"]
    assert main([*begun, *settings, "--trainer.logger=false"]) == 2
    message = capsys.readouterr().err
    last = command_folder / "run" / "checkpoints" / "last.ckpt"
    saved, configuration = last.read_bytes(), (command_folder / "run" / "config.yaml").read_bytes()
    assert read_checkpoint(last)["global_step"] == wrong // 10 * 10
    assert finite(last)
    assert finite(last.with_name("previous.ckpt"))
    assert "optimizer: exp_avg_sq of critic." in message  # weights are finite, and would never move again
    assert "parameters" not in message
    assert f"one of updates 20 to {wrong}, the loss of update {wrong} is the first that is not finite " in message
    update, batches, _ = read_minibatches(
        command_folder / "run" / "divergence" / "update_000000020.npz", toy_model().update_spec
    )
    assert (update, len(batches.rewards), float(at_update(batches, 2).rewards.max())) == (20, 3, pytest.approx(1e30))

    documented_command, documented_code = (
        re.findall(rf"```{language}\n(?:\$ )?(.*?)```", DOCUMENT.partition("Replaying")[2], flags=re.DOTALL)[0]
        for language in ("console", "python")
    )
    assert f"to find the update: {documented_command.strip().replace('RUN', 'run')}\n" in message
    assert main(shlex.split(documented_command.replace("RUN", "run"))[1:]) == 2
    message = capsys.readouterr().err
    assert f"training diverged: after update {wrong + 1} not finite: train/critic_loss" in message
    assert f"it began in update {wrong}, " in message
    assert (last.read_bytes(), (command_folder / "run" / "config.yaml").read_bytes()) == (saved, configuration)

    there: dict[str, Any] = {"TQL": TQL, "read_minibatches": read_minibatches, "at_update": at_update}
    exec(re.sub(r"\bRUN\b", "run", documented_code).replace("update_N", f"update_{wrong:09d}"), there)
    model, update, batches, loss, metrics = (there[name] for name in ("model", "update", "batches", "loss", "metrics"))
    assert (update, model.current_update) == (wrong, wrong)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert loss == math.inf
    assert [name for name, value in metrics.items() if not value.isfinite()] == ["critic_loss", "td_loss"]
    assert float(batches.rewards.max()) == pytest.approx(1e30)


def diverge(folder: Path, updates: int = 20, **settings: Any) -> str:
    """What is said when a model with a learning rate beyond all bounds is trained."""
    model = toy_model(learning_rate=1e30, lr_schedule="constant")
    with pytest.raises(TrainingDivergedError) as raised:
        fit(folder, model, updates, **settings)
    return str(raised.value)


def test_no_checkpoint_is_written_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    sound = fit(tmp_path, toy_model(), 5, [LastCheckpoint(str(tmp_path), 5)], plugins=WholeCheckpointIO())
    assert sound.global_step == 5
    before = (tmp_path / "last.ckpt").read_bytes()
    model = toy_model(learning_rate=1e30, lr_schedule="constant")
    callbacks = [LastCheckpoint(str(tmp_path), 5)]
    with pytest.raises(
        TrainingDivergedError, match=r"what training has made(?s:.*)parameters: critic\.(?s:.*)update 5;"
    ):
        fit(tmp_path, model, 30, callbacks, tmp_path / "last.ckpt", plugins=WholeCheckpointIO(), log_every_n_steps=100)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_weights_are_looked_at_with_the_metrics_and_every_name_is_written_down(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    message = diverge(tmp_path, logger=logger, log_every_n_steps=5)
    assert "not finite: train/critic_loss" in message
    assert "no checkpoint had been written yet" in message
    (text,) = (tmp_path / "divergence").glob("*.txt")
    assert "critic.heads.1.2.weight" in text.read_text()
    assert "critic.heads.1.2.weight" not in message


def test_training_that_ends_between_two_looks_is_looked_at_too(tmp_path: Path) -> None:
    assert "after update 5 not finite: what training has made" in diverge(tmp_path, updates=5, logger=False)


def test_the_optimizers_state_is_looked_at_too(tmp_path: Path) -> None:
    trainer = fit(tmp_path, toy_model(), 5)
    parameter = dict(trainer.lightning_module.named_parameters())["critic.heads.0.2.bias"]
    trainer.optimizers[0].state[parameter]["exp_avg_sq"].fill_(math.inf)  # the weight then never moves again
    with pytest.raises(TrainingDivergedError, match=r"optimizer: exp_avg_sq of critic\.heads\.0\.2\.bias \(1 of 1\)"):
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").exists()


def scaled(scale: float) -> dict[str, Any]:
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))
    return {"plugins": [plugin], "logger": False, "log_every_n_steps": 1, "updates_per_step": 1}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # torch, of a skipped first step
def test_gradients_that_overflow_in_float16_are_skipped_as_ever(tmp_path: Path) -> None:
    model = toy_model()
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer: Trainer = fit(tmp_path, model, 3, [LastCheckpoint(str(tmp_path), 1)], **scaled(2.0**127))
    assert trainer.global_step == 3
    moved = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    assert {name for name in before if name.startswith("critic.")}.isdisjoint(moved)
    assert any(name.startswith("critic.") for name in before)
    assert (tmp_path / "last.ckpt").is_file()


def test_a_scale_at_which_no_gradient_is_finite_ends_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match="gradients at every scale of float16"):
        fit(tmp_path, toy_model(), 3, **scaled(2.0**-41))


def test_the_first_loss_that_was_not_finite_bounds_the_updates_in_question() -> None:
    def suspects(update: int, by_losses: bool = True) -> range:
        return watch.suspects(update, *watch.first_broken(), by_losses)

    watch = DivergenceWatch()
    assert suspects(0) == range(0)
    for update, loss in enumerate((1.0, 1.0, math.nan, 1.0, math.nan)):
        watch.keep(20 + update, torch.tensor(loss))
    assert watch.first_broken() == (22, 21)
    assert watch.first_broken(passes=True) == (24, 23)
    assert suspects(25) == range(21, 23)
    assert suspects(25, by_losses=False) == range(20, 23)  # squared gradients may have been infinite before
    watch.passed(25)
    watch.keep(25, torch.tensor(1.0))
    watch.keep(29, torch.tensor(1.0))  # of a recorded update only a chunk's last
    assert suspects(30) == range(29, 30)
    watch.keep(30, torch.tensor(math.inf))
    assert suspects(31) == range(29, 31)
    watch.passed(31)
    watch.keep(31, torch.tensor(math.nan))
    assert suspects(40) == range(31, 32)
