"""The replay buffer: windows of what is collected, minibatches that mix it with the dataset, and its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.toy import toy_dataset
from tql_lightning.batch import Batch, UpdateSpec
from tql_lightning.data.experience import Experience, MixedSampler, Mode
from tql_lightning.data.replay import GrowingWindows, ReplayBuffer
from tql_lightning.data.storage import store
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.data.windows import FIELDS, Span, Windows

CPU = torch.device("cpu")


class Everything(NamedTuple):
    """Every field that an algorithm may read."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    masks: Tensor
    next_actions: Tensor
    next_action_known: Tensor
    terminals: Tensor
    valid: Tensor
    monte_carlo_returns: Tensor
    monte_carlo_remainders: Tensor


def columns(dataset: TransitionDataset, row: int) -> dict[str, Any]:
    return {name: getattr(dataset, name)[row : row + 1] for name in Batch._fields}


def filled(dataset: TransitionDataset, steps: int, folder: Path | None = None) -> ReplayBuffer:
    """A buffer of one lane with the dataset's first transitions."""
    buffer = ReplayBuffer(dataset, 1, steps + 10, CPU, CPU, folder)
    for row in range(steps):
        buffer.write(row, np.zeros(1, dtype=np.int64), columns(dataset, row))
    return buffer


@pytest.mark.parametrize(("n_step", "action_chunk"), [(1, 1), (3, 1), (2, 3)])
def test_windows_of_collected_episodes_are_those_of_a_dataset_with_the_same(n_step: int, action_chunk: int) -> None:
    assert set(Everything._fields) == set(FIELDS)
    dataset, span = toy_dataset(), Span(n_step, action_chunk, 0.9)
    expected = Windows(store(dataset, "cpu"), dataset, span)
    grown = GrowingWindows(filled(dataset, len(dataset)), span)
    ends = np.flatnonzero(dataset.episode_ends)
    episodes = np.stack([np.zeros_like(ends), np.append(0, ends[:-1] + 1), ends], axis=1)
    for known in (3, len(ends)):  # the others follow, as if they had been collected since
        steps = int(ends[known - 1]) + 1
        grown.grow(episodes[:known], np.array([steps]), steps)
    assert len(grown) == len(expected)
    every = torch.arange(len(expected))
    for name, ours, theirs in zip(
        Everything._fields, grown.batch(every, Everything), expected.batch(every, Everything), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_the_last_step_so_far_ends_an_episode_like_a_time_limit() -> None:
    dataset = toy_dataset()
    grown = GrowingWindows(filled(dataset, 15), Span(2, 2, 0.9))
    grown.grow(np.zeros((0, 3), dtype=np.int64), np.zeros(1, dtype=np.int64), 15)
    assert len(grown) == 14  # the fifteenth step has no action after it
    batch = grown.batch(torch.tensor([13]))
    assert torch.equal(batch.next_observations[0], torch.from_numpy(dataset.next_observations[14]))
    assert batch.masks.item() == pytest.approx(0.9)


def test_lanes_stay_apart() -> None:
    dataset = toy_dataset()
    buffer = ReplayBuffer(dataset, 2, 10, CPU, CPU)
    for step in range(6):
        rows = np.array([step, 20 + step])
        buffer.write(step, np.arange(2), {name: getattr(dataset, name)[rows] for name in Batch._fields})
    grown = GrowingWindows(buffer, Span(3, 1, 1.0))
    # The first environment's episode ended after its third step; its fourth failed.
    grown.grow(np.array([[0, 0, 2]]), np.array([4, 0]), 6)
    batch = grown.batch(torch.arange(len(grown)))
    rewards = torch.from_numpy(dataset.rewards)
    expected = [rewards[i : min(i + 3, 3)].sum() for i in range(3)] + [rewards[4:6].sum(), rewards[5]]
    expected += [rewards[20 + i : min(23 + i, 26)].sum() for i in range(6)]
    torch.testing.assert_close(batch.rewards, torch.stack(expected))


class Collected:
    """What a sampler sees of an online phase."""

    def __init__(self, windows: GrowingWindows, mode: Mode) -> None:
        self.windows, self.mode = windows, mode


def draw(mode: Mode, steps: int, rank: int = 0, world_size: int = 1) -> Tensor:
    """Which of a batch's rows are collected: 1,000 rows of 160 transitions and ``steps`` collected ones."""
    dataset = toy_dataset()
    other = toy_dataset(reward_scale=0.0)
    grown = GrowingWindows(filled(other, steps), Span())
    grown.grow(np.zeros((0, 3), dtype=np.int64), np.zeros(1, dtype=np.int64), steps)
    sampler = MixedSampler(dataset, 1_000, 0, "cpu", rank, world_size, spec=UpdateSpec())
    sampler.experience = cast("Experience", Collected(grown, mode))
    batch, _ = sampler.chunk(0, 1)
    return batch.rewards[0] == 0.0


def test_a_batch_mixes_dataset_and_experience_as_the_mode_says() -> None:
    assert draw("retain", 40).float().mean() == pytest.approx(0.2, abs=0.04)  # 40 of 200
    assert draw("balanced", 40).tolist() == [False, True] * 500
    assert draw("empty", 40).all()
    for mode in ("retain", "balanced"):
        assert not draw(cast("Mode", mode), 0).any()
    with pytest.raises(DatasetError, match="expected collected transitions"):
        draw("empty", 0)


@pytest.mark.parametrize("mode", ["retain", "balanced"])
def test_processes_draw_shares_of_the_one_batch(mode: Mode) -> None:
    shares = [draw(mode, 40, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat(shares), draw(mode, 40))


def test_the_files_hold_what_was_written_and_grow(tmp_path: Path) -> None:
    dataset = toy_dataset()
    filled(dataset, 20, tmp_path).flush()
    longer = ReplayBuffer(dataset, 1, 50, CPU, CPU, tmp_path)
    np.testing.assert_array_equal(longer.read("observations", 0, 0, 20), dataset.observations[:20])
    copied = ReplayBuffer(dataset, 1, 50, CPU, CPU)
    copied.copy_from(tmp_path, 20)
    np.testing.assert_array_equal(copied.read("rewards", 0, 0, 20), dataset.rewards[:20])
    assert longer.storage.take("rewards", torch.arange(20)).tolist() == dataset.rewards[:20].tolist()


@pytest.mark.parametrize("shape", ["(10000000000, 3)", "(15, -3)", "-" * 3000 + "1"])
def test_a_file_that_says_more_than_it_holds_is_refused_and_made_no_longer(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    file = tmp_path / "observations.npy"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(60))
    size = file.stat().st_size
    with pytest.raises(DatasetError, match="expected a replay buffer of 1 environments"):
        ReplayBuffer(toy_dataset(), 1, 5, CPU, CPU, tmp_path)
    assert file.stat().st_size == size


def test_a_hard_link_gets_a_file_of_its_own(tmp_path: Path) -> None:
    dataset = toy_dataset()
    filled(dataset, 5, tmp_path / "run").flush()
    before = (tmp_path / "run" / "rewards.npy").read_bytes()
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "run").iterdir():
        os.link(path, tmp_path / "other" / path.name)
    copied = ReplayBuffer(dataset, 1, 15, CPU, CPU, tmp_path / "other")
    assert np.array_equal(copied.read("rewards", 0, 0, 5), dataset.rewards[:5])
    copied.write(0, np.zeros(1, dtype=np.int64), columns(dataset, 7))
    copied.flush()
    assert (tmp_path / "run" / "rewards.npy").read_bytes() == before


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "observations.npy", np.zeros(3))
    with pytest.raises(DatasetError, match="expected a replay buffer of 1 environments"):
        ReplayBuffer(toy_dataset(), 1, 5, CPU, CPU, tmp_path)
