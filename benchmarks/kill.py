"""Training is killed (SIGKILL) at random moments, over and over: what is left of its checkpoints?

    python -m benchmarks.kill --rounds 50 --json
    python -m benchmarks.kill --rounds 50 --plain   # Lightning's own way of writing, to compare

A small real run saves after every chunk of updates, so that it is killed while writing as often as while computing.
After each kill every checkpoint is checked, and the next process continues from the newest that is whole. At the end
the weights are compared with those of a run that nothing interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer, seed_everything

from tql_lightning import TQL, OfflineDataModule, TransitionDataset
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.run.checkpoint_file import LAST, PREVIOUS, CheckpointError
from tql_lightning.run.checkpoint_io import WholeCheckpointIO, read_checkpoint
from tql_lightning.training.optimisation import Optimisation
from tql_lightning.training.resuming import newest_whole

INTERVAL = 5  # updates between two checkpoints, and of a chunk
MOST_UPDATES = 1_000_000
START_SECONDS = 600.0  # until training that makes no update counts as hung


@dataclass
class Kills:
    """What came of the kills.

    Attributes:
        rounds: how often training was killed.
        updates: that the checkpoint to continue from had seen in the end.
        damaged: checkpoints that were found damaged, over all rounds.
        fallbacks: rounds after which the last checkpoint was damaged, and the one before it was taken.
        leftovers: half-written files that kills left, which is how often they struck while writing.
        most_lost: updates between the one that was reached and the checkpoint, at most.
        equal: whether the weights are in the end those of a run that nothing interrupted, bit for bit.
    """

    rounds: int = 0
    updates: int = 0
    damaged: int = 0
    fallbacks: int = 0
    leftovers: int = 0
    most_lost: int = 0
    equal: bool = False


class _Reached(Callback):
    """Tells the parent how far training is."""

    def __init__(self, updates: Any) -> None:
        self.updates = updates

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # type: ignore[override]
        self.updates.value = trainer.global_step


def train(folder: Path, updates: int, checkpoint: Path | None, plain: bool, reached: Any = None) -> TQL:
    """A small run to a number of updates, from a checkpoint if one is given; saves after every chunk."""
    rng = np.random.default_rng(0)
    ends = np.arange(200) % 20 == 19
    observations, following = rng.normal(size=(2, 200, 3))
    actions = rng.uniform(-1, 1, size=(200, 1))
    dataset = TransitionDataset.from_arrays(
        observations, actions, observations[:, 0], np.zeros(200), ends, following, name="random"
    )
    seed_everything(0, verbose=False)
    critic, policy = partial(TransformerCritic, hidden_dim=16, head_dim=8), partial(FlowPolicy, hidden_dims=(128, 128))
    model = TQL(3, 1, critic, policy, optimisation=Optimisation(1e-4, {"actor": 5e-4}, 0.01, "warmup_cosine", 3, 1000))
    callbacks: list[Callback] = [LastCheckpoint(str(folder), INTERVAL)]
    trainer = Trainer(
        max_steps=updates,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        callbacks=[*callbacks, *([] if reached is None else [_Reached(reached)])],
        plugins=TorchCheckpointIO() if plain else WholeCheckpointIO(),
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = OfflineDataModule(dataset, batch_size=16, updates_per_step=INTERVAL)
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return model


def kill_often(folder: Path, rounds: int, seed: int = 0, plain: bool = False, budget: float = float("inf")) -> Kills:
    """Trains in processes that are killed, one after the other, and then to an end.

    Args:
        folder: of the checkpoints; empty.
        rounds: kills.
        seed: of their moments.
        plain: write as Lightning does.
        budget: seconds after which no further round begins.
    """
    kills, moments, started = Kills(), random.Random(seed), time.monotonic()
    context = multiprocessing.get_context("fork")
    last, checkpoint = folder / LAST, None
    while kills.rounds < rounds and time.monotonic() - started < budget:
        reached = context.RawValue("q", 0)
        process = context.Process(target=_train_quietly, args=(folder, checkpoint, plain, reached))
        process.start()
        begun, deadline = kills.updates, time.monotonic() + START_SECONDS
        while reached.value <= begun + INTERVAL:  # so that a checkpoint is there, and every round gets on
            if not process.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"training ended by itself or hangs (exit code {process.exitcode})")
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.2))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        kills.rounds += 1
        kills.damaged += sum(_is_damaged(path) for path in (last, folder / PREVIOUS) if path.is_file())
        kills.leftovers += len(list(folder.glob(".*.part")))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checkpoint, raw = newest_whole([last])
        kills.fallbacks += len(caught)
        kills.updates = int(raw["global_step"])
        kills.most_lost = max(kills.most_lost, int(reached.value) - kills.updates)
    end = kills.updates + INTERVAL
    continued = train(folder, end, checkpoint, plain).state_dict()
    with tempfile.TemporaryDirectory() as other:
        whole = train(Path(other), end, None, plain).state_dict()
    kills.equal = all(torch.equal(value, continued[name]) for name, value in whole.items())
    return kills


def _train_quietly(folder: Path, checkpoint: Path | None, plain: bool, reached: Any) -> None:
    torch.set_num_threads(1)
    train(folder, MOST_UPDATES, checkpoint, plain, reached)


def _is_damaged(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except CheckpointError:
        return True
    return False


def main(arguments: list[str] | None = None) -> None:
    """Prints what came of the kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="Lightning's own way of writing")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no further round after so long")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kills = asdict(kill_often(Path(folder), chosen.rounds, chosen.seed, chosen.plain, chosen.seconds))
    print(json.dumps(kills) if chosen.json else "\n".join(f"{name}: {value}" for name, value in kills.items()))


if __name__ == "__main__":
    main()
