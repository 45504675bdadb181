"""What processes that train together do; ``python -m tests.two_processes FOLDER [four | BACKEND]`` is all of them."""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch._dynamo.utils import counters

from tests import environments  # noqa: F401  (registers)
from tests.command_line import TINY
from tests.toy import fit, toy_dataset, toy_model
from tql_lightning.callbacks.attention_entropy import AttentionEntropyMonitor
from tql_lightning.callbacks.background import interrupted
from tql_lightning.callbacks.best_checkpoint import BestCheckpoint
from tql_lightning.callbacks.checkpointing import GracefulInterrupt, LastCheckpoint
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.callbacks.throughput import Throughput
from tql_lightning.cli.main import main
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.loggers.csv_logger import ContinuedCSVLogger
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.sigma_reparam import SigmaReparam
from tql_lightning.nn.temperature import AttentionTemperature, SingleTemperature, TargetSchedule
from tql_lightning.nn.value_loss import HLGauss
from tql_lightning.run.checkpoint_io import WholeCheckpointIO
from tql_lightning.testing.ports import quiet_port

UPDATES, SIGNAL_AT = 20, 6  # the signal comes in the middle of a chunk of 5 updates


class SignalAt(Callback):
    """Sends the last process a signal in the middle of an update."""

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == SIGNAL_AT and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


class SignalBetween(Callback):
    """Sends the last process a signal when the others have gone on to the observers of the same update."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 5 and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        of_those = trainer.strategy.reduce(torch.tensor(float(interrupted(trainer))), reduce_op="mean")
        assert of_those == float(trainer.global_step > 5)  # else one waits in an evaluation that another leaves out


class EndsAt(Callback):
    """Ends the last process without a word."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 10 and trainer.global_rank == trainer.world_size - 1:
            os._exit(0)


class SeeStrategy(Callback):
    """Keeps how DDP was set up."""

    static: bool | None = None
    searches: bool | None = None

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self.static = getattr(trainer.strategy.model, "static_graph", None)
        self.searches = getattr(trainer.strategy.model, "find_unused_parameters", None)


class CriticWithMore(TransformerCritic):
    """A critic with a parameter that nothing uses."""

    def __init__(self, *sizes: int, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        self.unused = nn.Parameter(torch.ones(3))


def train(
    folder: Path,
    processes: int,
    *more: Callback,
    precision: str = "64-true",
    continued: bool = False,
    strategy: str = "auto",
) -> Trainer:
    """A run, or the rest of one, with everything that depends on how many processes there are; float32 drops out."""
    critic = partial(TransformerCritic, hidden_dim=16, head_dim=8, dropout=0.0 if precision == "64-true" else 0.1)
    model = toy_model(critic=critic, normalize_q_loss=True, gradient_clip_norm=1.0)
    callbacks = [
        GracefulInterrupt(),
        AttentionEntropyMonitor(),
        RolloutEvaluation(3, 10, env_id="tests.environments:Swing-v0"),
        Throughput(),
        LastCheckpoint(str(folder), every_n_updates=5),
        BestCheckpoint(str(folder)),
        *more,
    ]
    return fit(
        folder,
        model.double() if precision == "64-true" else model,
        UPDATES,
        callbacks,
        folder / "last.ckpt" if continued else None,
        devices=processes,
        precision=precision,
        strategy=strategy,
        logger=ContinuedCSVLogger(str(folder)),
        log_every_n_steps=5,
        val_check_interval=2,
        plugins=WholeCheckpointIO(),
    )


def train_variant(folder: Path, processes: int) -> None:
    """Other losses, buffers that move, and a parameter that nothing uses."""
    critic = partial(CriticWithMore, hidden_dim=16, head_dim=8, weight_parametrisation=SigmaReparam)
    model = toy_model(
        critic=critic,
        entropy_control=SingleTemperature,
        value_loss=HLGauss,
        reward_range=(-3.0, 3.0),
        target_aggregation="min",
    )
    callbacks: list[Callback] = [LastCheckpoint(str(folder), every_n_updates=5)]
    fit(folder, model.double(), 10, callbacks, devices=processes, precision="64-true")


def train_twice(folder: Path, processes: int) -> None:
    """Two fits of one trainer, of which the second goes on from the first."""
    model = toy_model().double()
    trainer = fit(folder, model, 5, devices=processes, precision="64-true")
    trainer.fit_loop.epoch_loop.max_steps = 10
    trainer.fit(model, datamodule=OfflineDataModule(toy_dataset(), batch_size=16, updates_per_step=5))
    trainer.save_checkpoint(folder / "last.ckpt")


def train_compiled(folder: Path, processes: int, backend: str | None = None) -> None:
    """Losses in one graph, of which the mean over processes is a part; "eager" generates no code.

    It is one also with targets that move, a last chunk of two updates, and validation between chunks.
    """
    if backend is not None:
        torch.compile = partial(torch.compile, backend=backend)  # type: ignore[assignment]
        torch._dynamo.config.error_on_recompile = True  # type: ignore[assignment]
    control = partial(AttentionTemperature, schedule=TargetSchedule(0.1, 10))
    model = toy_model(normalize_q_loss=True, compile=backend is not None, entropy_control=control).double()
    callbacks: list[Callback] = [LastCheckpoint(str(folder), every_n_updates=5)]
    fit(folder, model, 12, callbacks, devices=processes, precision="64-true", val_check_interval=1)
    assert backend is None or counters["stats"]["unique_graphs"] == 1


def run_command(folder: Path, callback: str) -> int:
    """``tql fit`` on two processes, with a callback of this file."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(TINY)
    os.chdir(folder)
    fixed = ("--config", "tiny.yaml", "--data.dataset=tests.toy.toy_dataset", "--data.updates_per_step=10")
    fixed += ("--trainer.logger=false",)
    return main(["fit", *fixed, "--trainer.devices=2", f"--trainer.callbacks+=tests.two_processes.{callback}"])


def as_one_of_two(folder: Path) -> None:
    """Everything that two processes are asked to do; the run in ``one_then_two`` was begun by one."""
    see = SeeStrategy()
    rank = train(folder / "two", 2, see).global_rank
    stopped = [train(folder / "two_then_one", 2, SignalAt()).global_step]
    train(folder / "one_then_two", 2, continued=True)
    train_variant(folder / "two_variant", 2)
    train_twice(folder / "two_twice", 2)
    train(folder / "two_float32", 2, precision="32-true")
    stopped += [train(folder / "two_then_two", 2, SignalBetween(), precision="32-true").global_step]
    train(folder / "two_then_two", 2, precision="32-true", continued=True)
    code = run_command(folder / "command", "SignalAt")
    seen = {"static": see.static, "searches": see.searches, "code": code, "stopped": stopped}
    (folder / f"seen_{rank}.json").write_text(json.dumps(seen))
    assert run_command(folder / "left_alone", "EndsAt") == 2


def as_one_of_four(folder: Path) -> None:
    """Runs of four processes, of which one has no episode to play; that in ``one_then_four`` was begun by one."""
    for strategy in ("ddp", "sharded"):
        train(folder / strategy, 4, strategy=strategy)
    train(folder / "four_then_one", 4, SignalAt())
    train(folder / "one_then_four", 4, continued=True)


if __name__ == "__main__":
    folder, what = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(quiet_port()), "NODE_RANK": "0"}
    rank, children = 0, []
    for other in range(1, 4 if what == "four" else 2):
        child = os.fork()  # before any gradient: torch's threads would not live on in the child
        if not child:
            rank, children = other, []
            break
        children.append(child)
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    if what is None:
        as_one_of_two(folder)
    elif what == "four":
        as_one_of_four(folder)
    else:
        train_compiled(folder / "two_compiled", 2, what)
    sys.exit(max((os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), default=0, key=abs))
