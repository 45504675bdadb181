"""A user's own callback, critic and dataset, each in a file in the folder where ``tql fit`` runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.command_line import TINY, call_tql, run_tql

DATASET = '''
import numpy as np

from tql_lightning import TransitionDataset


def random_walks(episodes: int = 10, seed: int = 0) -> TransitionDataset:
    """Episodes of 20 steps of a random walk, cut short and never terminated."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1.0, 1.0, size=(20 * episodes, 2))
    observations = np.cumsum(actions, axis=0)
    ends = np.arange(len(actions)) % 20 == 19
    return TransitionDataset.from_arrays(
        observations,
        actions,
        rewards=-np.abs(observations).sum(axis=1),
        terminations=np.zeros(len(actions), dtype=bool),
        truncations=ends,
        next_observations=observations + actions,
        name="random walks",
    )
'''
CRITIC = '''
import torch
from torch import Tensor, nn

from tql_lightning import Critic, CriticOutput


class BilinearCritic(Critic):
    """Q(s, a) from a product of features of the observation and of the action."""

    def __init__(self, observation_dim: int, action_dim: int, width: int = 8) -> None:
        super().__init__()
        self.observation_features = nn.Linear(observation_dim, width)
        self.action_features = nn.Linear(action_dim, width)
        self.heads = nn.Linear(width, 2)

    def forward(self, observations: Tensor, actions: Tensor, *, with_entropy: bool = False) -> CriticOutput:
        features = torch.tanh(self.observation_features(observations)) * self.action_features(actions)
        return CriticOutput(self.heads(features), None)
'''
CALLBACK = '''
from pathlib import Path

from lightning.pytorch import Callback


class CriticLossFile(Callback):
    """Writes the critic's loss of every chunk to a file."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with self.file.open("a") as lines:
            assert outputs["log_now"] == (trainer.global_step % trainer.log_every_n_steps == 0)
            if outputs["log_now"]:
                print(trainer.global_step, float(outputs["metrics"]["critic_loss"]), file=lines)
'''


def test_a_users_dataset_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "walks.py").write_text(DATASET)
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ("--data.dataset=walks.random_walks", "--data.dataset.episodes=7")
    finished = call_tql(tmp_path, "fit", "--config", "tiny.yaml", *arguments)
    assert finished.returncode == 0, finished.stderr
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["OfflineDataModule"]["name"] == "random walks"
    assert (checkpoint["hyper_parameters"]["observation_dim"], checkpoint["hyper_parameters"]["action_dim"]) == (2, 2)


@pytest.mark.slow
def test_a_users_critic_is_trained_and_loaded_from_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "bilinear.py").write_text(CRITIC)
    (tmp_path / "tiny.yaml").write_text(TINY)
    collected = call_tql(tmp_path, "collect", "Pendulum-v1", "--transitions=400", "--output=pendulum.npz")
    assert collected.returncode == 0, collected.stderr
    data = ("--data.dataset=tql_lightning.data.sources.npz.load_npz", "--data.dataset.path=pendulum.npz")
    critic = ("--model.critic=bilinear.BilinearCritic", "--model.critic.width=6")
    finished = run_tql(tmp_path, "fit", "--config", "tiny.yaml", *data, *critic)
    assert finished.returncode == 0, finished.stderr
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["critic.heads.weight"].shape == (2, 6)
    evaluated = call_tql(tmp_path, "evaluate", "run/checkpoints/last.ckpt", "--episodes=1", "--extraction=implicit")
    assert evaluated.returncode == 0, evaluated.stderr


def test_a_users_callback_sees_every_chunk(tmp_path: Path) -> None:
    (tmp_path / "walks.py").write_text(DATASET)
    (tmp_path / "loss_file.py").write_text(CALLBACK)
    (tmp_path / "tiny.yaml").write_text(TINY)
    callback = ("--trainer.callbacks+=loss_file.CriticLossFile", "--trainer.callbacks.file=losses.txt")
    finished = call_tql(tmp_path, "fit", "--config", "tiny.yaml", "--data.dataset=walks.random_walks", *callback)
    assert finished.returncode == 0, finished.stderr
    lines = (tmp_path / "losses.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == [10, 20]
    assert all(float(line.split()[1]) != 0.0 for line in lines)
