"""Callbacks only observe: training is bit for bit the same with and without them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from tests.toy import fit, toy_model
from tql_lightning.callbacks.attention_entropy import AttentionEntropyMonitor
from tql_lightning.callbacks.attention_map import AttentionMap
from tql_lightning.callbacks.before_divergence import BeforeDivergence
from tql_lightning.callbacks.best_checkpoint import BestCheckpoint
from tql_lightning.callbacks.checkpointing import GracefulInterrupt, LastCheckpoint
from tql_lightning.callbacks.episode_videos import EpisodeVideos
from tql_lightning.callbacks.plots import TrainingPlots
from tql_lightning.callbacks.progress import UpdateProgressBar
from tql_lightning.callbacks.q_landscape import QLandscape
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.callbacks.throughput import Throughput
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.sigma_reparam import SigmaReparam

# In the background: test_rollout_evaluation.py.
CALLBACKS: dict[str, Callable[[], Callback]] = {
    "AttentionEntropyMonitor": AttentionEntropyMonitor,
    "RolloutEvaluation": lambda: RolloutEvaluation(episodes=2, every_n_updates=5, env_id="tests.environments:Swing-v0"),
    "RolloutEvaluation, best of n": lambda: RolloutEvaluation(
        episodes=2, every_n_updates=10, env_id="tests.environments:Swing-v0", extraction="best_of_n"
    ),
    "EpisodeVideos": lambda: EpisodeVideos(every_n_updates=10, env_id="tests.environments:Toy-v0"),
    "AttentionMap": lambda: AttentionMap(every_n_updates=5),
    "QLandscape": lambda: QLandscape(every_n_updates=5),
    "Throughput": Throughput,
    "BestCheckpoint": lambda: BestCheckpoint(monitor="train/td_loss"),
    "LastCheckpoint": lambda: LastCheckpoint(every_n_updates=5),
    "GracefulInterrupt": GracefulInterrupt,
    "BeforeDivergence": BeforeDivergence,
    "TrainingPlots": TrainingPlots,
    "UpdateProgressBar": UpdateProgressBar,
}


class Watch(Callback):
    """Train modes and the random state at every step."""

    def __init__(self) -> None:
        self.modes: list[list[bool]] = []
        self.states: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, pl_module, *_) -> None:  # type: ignore[no-untyped-def]
        self.modes.append([module.training for module in pl_module.modules()])
        self.states.append(torch.get_rng_state())


def train(folder: Path, callbacks: list[Callback]) -> tuple[dict[str, torch.Tensor], Watch]:
    # Dropout draws, and sigma-Reparam's vectors move, wherever a critic in training mode is looked at.
    critic = partial(TransformerCritic, hidden_dim=16, head_dim=8, dropout=0.1, weight_parametrisation=SigmaReparam)
    model, watch = toy_model(critic=critic), Watch()
    progress = any(isinstance(callback, UpdateProgressBar) for callback in callbacks)
    logger = CSVLogger(folder, name="", version="")
    fit(
        folder,
        model,
        updates=12,
        callbacks=[*callbacks, watch],
        logger=logger,
        enable_progress_bar=progress,
        log_every_n_steps=5,
    )
    return model.state_dict(), watch


@cache
def trained_without() -> tuple[dict[str, torch.Tensor], Watch]:
    with TemporaryDirectory() as folder:
        return train(Path(folder), [])


SLOW = ("EpisodeVideos", "AttentionMap", "QLandscape")  # draw


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CALLBACKS]
)
def test_training_is_the_same_with_and_without(name: str, tmp_path: Path) -> None:
    expected, expected_watch = trained_without()
    found, watch = train(tmp_path / "with", [CALLBACKS[name]()])
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert watch.modes == expected_watch.modes
    assert all(torch.equal(one, other) for one, other in zip(watch.states, expected_watch.states, strict=True))
