"""n-step returns and action chunks against a slow, obvious loop."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.toy import fit, toy_model
from tql_lightning.algorithms.tql import TQL
from tql_lightning.batch import Batch
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.returns import monte_carlo_returns
from tql_lightning.data.sampler import TransitionSampler, ValidationPass
from tql_lightning.data.storage import store
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.data.windows import Span, Windows, windows_of

DISCOUNT = 0.9


def episodes(seed: int = 0, goals: bool = True) -> TransitionDataset:
    """Short episodes of random length; some terminate, some are cut, some pass a goal that masks and goes on."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=12)
    size, ends = int(lengths.sum()), lengths.cumsum() - 1
    terminations, truncations = np.zeros(size), np.zeros(size)
    terminations[ends[::3]] = 1
    truncations[ends] = 1
    reached = (rng.random(size) < 0.15) & goals
    return TransitionDataset.from_arrays(
        np.arange(size * 2.0).reshape(size, 2),
        rng.uniform(-0.9, 0.9, size=(size, 2)),
        rng.normal(size=size),
        terminations,
        truncations,
        np.arange(size * 2.0).reshape(size, 2) + 0.5,
        name="episodes",
        masks=~(reached | (terminations > 0)),
    )


def obvious_rows(dataset: TransitionDataset, span: Span) -> list[dict[str, np.ndarray]]:
    """Every window, one step after the other."""
    rows = []
    for start in range(len(dataset)):
        last = start
        while not dataset.episode_ends[last]:
            last += 1
        actions_known = last - start + 1 >= span.action_chunk
        if not actions_known and dataset.masks[last] != 0:
            continue  # cut by a time limit: nobody knows the chunk's other actions
        actions = [
            dataset.actions[start + j] if start + j <= last else np.zeros(dataset.action_dim)
            for j in range(span.action_chunk)
        ]
        total, step = 0.0, start
        for j in range(span.steps):
            step = start + j
            total += span.discount**j * float(dataset.rewards[step])
            if dataset.masks[step] == 0 or step == last:
                break
        rows.append(
            {
                "observations": dataset.observations[start],
                "actions": np.concatenate(actions),
                "rewards": np.array(total),
                "next_observations": dataset.next_observations[step],
                "masks": np.array(span.discount ** (step - start) * dataset.masks[step]),
            }
        )
    return rows


def made(dataset: TransitionDataset, span: Span) -> Windows:
    return Windows(store(dataset, "cpu"), dataset, span)


@pytest.mark.parametrize(("n_step", "action_chunk"), list(product([1, 2, 3, 10], [1, 2, 3])))
@pytest.mark.parametrize("seed", [0, 1])
def test_windows_equal_a_loop(n_step: int, action_chunk: int, seed: int) -> None:
    dataset, span = episodes(seed), Span(n_step, action_chunk, DISCOUNT)
    expected = obvious_rows(dataset, span)
    windows = made(dataset, span)
    assert len(windows) == len(expected)
    every = torch.arange(len(windows))
    batch = windows.batch(every)
    for name in Batch._fields:
        np.testing.assert_allclose(getattr(batch, name), np.stack([row[name] for row in expected]), atol=1e-5)
    windows.tabulate()
    for name, tensor in windows.batch(every.view(1, -1))._asdict().items():
        assert torch.equal(tensor[0], getattr(batch, name)), name


def test_what_windows_reach_is_tabulated_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, span = episodes(), Span(2, 2, DISCOUNT)
    expected = TransitionSampler(dataset, 64, 0, span=span).chunk(0, 2)[0]
    monkeypatch.setattr("tql_lightning.data.windows.BLOCK", 12)  # three windows at a time
    found = TransitionSampler(dataset, 64, 0, span=span).chunk(0, 2)[0]
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_a_target_of_n_steps_is_the_one_of_single_steps_where_values_are_exact() -> None:
    """Where V is the true value of the recorded behaviour, no n changes the target y = r + discount * mask * V."""
    dataset = episodes(2)
    values = np.zeros(len(dataset) + 1)
    for row in reversed(range(len(dataset))):  # V of a row's next observation; 0.7 where the recording is cut
        bootstrap = 0.7 if dataset.episode_ends[row] else dataset.rewards[row + 1] + DISCOUNT * values[row + 1]
        values[row] = bootstrap * dataset.masks[row]
    position = {float(first): row for row, (first, _) in enumerate(dataset.next_observations)}
    targets = []
    for n_step in (1, 2, 5):
        batch = made(dataset, Span(n_step, 1, DISCOUNT)).batch(torch.arange(len(dataset)))
        following = np.array([values[position[float(first)]] for first, _ in batch.next_observations])
        targets.append(batch.rewards.numpy() + DISCOUNT * batch.masks.numpy() * following)
    np.testing.assert_allclose(targets[1], targets[0], atol=1e-5)
    np.testing.assert_allclose(targets[2], targets[0], atol=1e-5)


def test_single_steps_are_the_transitions_themselves() -> None:
    dataset = episodes()
    batch = made(dataset, Span()).batch(torch.arange(len(dataset)))
    for name, tensor in batch._asdict().items():
        np.testing.assert_array_equal(tensor, getattr(dataset, name))


def test_every_window_of_a_chunk_is_drawn_equally_often() -> None:
    dataset = episodes(goals=False)
    span = Span(action_chunk=3)
    sampler = TransitionSampler(dataset, 4096, 0, span=span)
    drawn, counts = np.unique(sampler.chunk(0, 10)[0].observations[..., 0].flatten(), return_counts=True)
    assert drawn.tolist() == [row["observations"][0] for row in obvious_rows(dataset, span)]
    assert counts.min() > 0.85 * counts.mean()


def test_held_out_windows_are_passed_over_once() -> None:
    dataset, span = episodes(), Span(2, 2, DISCOUNT)
    batches = [batch for batch, _ in ValidationPass(dataset, 5, 0, span=span)]
    joined = torch.cat([batch.rewards for batch in batches])
    np.testing.assert_allclose(joined, [row["rewards"] for row in obvious_rows(dataset, span)], atol=1e-5)


def test_a_chunk_longer_than_every_episode_is_refused() -> None:
    dataset = episodes(goals=False)
    cut = TransitionDataset.from_arrays(
        dataset.observations, dataset.actions, dataset.rewards, np.zeros(len(dataset)), dataset.episode_ends, name="cut"
    )
    with pytest.raises(DatasetError, match=r"data.action_chunk: cut: expected at most 7, its longest episode, found 8"):
        made(cut, Span(action_chunk=8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_step": 0}, "data.n_step: expected at least 1, found 0"),
        ({"action_chunk": -1}, "data.action_chunk: expected at least 1, found -1"),
        ({"discount": 1.5}, "data.discount: expected between 0 and 1, found 1.5"),
    ],
)
def test_spans_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OfflineDataModule(episodes(), **arguments)  # type: ignore[arg-type]


def test_a_model_that_decides_or_discounts_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.discount: expected the model's discount, 0.9, found 0.99"):
        fit(tmp_path, toy_model(discount=0.9), 5, data={"n_step": 2})
    with pytest.raises(ValueError, match=r"data.action_chunk: expected the model's action_chunk, 1, found 2"):
        fit(tmp_path, toy_model(), 5, data={"action_chunk": 2})


def test_the_releases_windows_are_refused_for_a_model_that_does_not_read_which_steps_are_valid(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.release_windows: expected false with TQL, .* found true; set it to"):
        fit(tmp_path, toy_model(), 5, data={"release_windows": True})


def test_a_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model.observation_dim: expected the data's, 3, found 4; make the TQL of data"
    ):
        fit(tmp_path, TQL(4, 1), 5)
    with pytest.raises(ValueError, match=r"model.action_dim: expected the data's, 1, found 2"):
        fit(tmp_path, TQL(3, 2), 5)


def test_training_on_windows_resumes_exactly(tmp_path: Path) -> None:
    data: dict[str, Any] = {"n_step": 2, "action_chunk": 2}
    whole, resumed = toy_model(action_chunk=2), toy_model(action_chunk=2)
    fit(tmp_path, whole, 10, data=data)
    fit(tmp_path, resumed, 5, data=data).save_checkpoint(tmp_path / "half.ckpt")
    again = toy_model(action_chunk=2)
    fit(tmp_path, again, 10, ckpt_path=tmp_path / "half.ckpt", data=data)
    for name, parameter in whole.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name


class EveryField(NamedTuple):
    """All that windows can give."""

    observations: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    next_observations: torch.Tensor
    masks: torch.Tensor
    next_actions: torch.Tensor
    next_action_known: torch.Tensor
    terminals: torch.Tensor
    valid: torch.Tensor


@pytest.mark.parametrize(("n_step", "action_chunk"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_the_next_action_is_that_of_the_same_episode_or_unknown(n_step: int, action_chunk: int) -> None:
    dataset, span = episodes(), Span(n_step, action_chunk, DISCOUNT)
    windows = Windows(store(dataset, "cpu"), dataset, span)
    windows.tabulate()
    batch = windows.batch(torch.arange(len(windows)), EveryField)
    position = {tuple(row): index for index, row in enumerate(dataset.next_observations.tolist())}
    known = 0
    for row, (following, is_known, terminal) in enumerate(
        zip(batch.next_actions, batch.next_action_known, batch.terminals, strict=True)
    ):
        final = position[tuple(batch.next_observations[row].tolist())]
        assert terminal == float(dataset.episode_ends[final])
        inside = not dataset.episode_ends[final : final + action_chunk].any()
        expected = dataset.actions[final + 1 : final + 1 + action_chunk].flatten() if inside else 0.0
        assert is_known == float(inside)
        np.testing.assert_array_equal(following, expected)
        known += inside
    assert 0 < known < len(windows)
    assert batch.valid.tolist() == [[1.0] * span.steps] * len(windows)


def test_the_releases_windows_are_those_of_its_sampler() -> None:
    golden = np.load(Path(__file__).parents[1] / "golden" / "QC" / "chunks" / "chunks.npz")
    arrays = {name.removeprefix("dataset/"): golden[name] for name in golden.files if name.startswith("dataset/")}
    ends = arrays["terminals"].astype(bool)
    dataset = TransitionDataset.from_arrays(
        arrays["observations"],
        arrays["actions"],
        arrays["rewards"],
        np.zeros(len(ends)),
        ends,
        arrays["next_observations"],
        masks=arrays["masks"],
        name="chunks",
    )
    chunk = golden["chunks/actions"].shape[1]
    windows = windows_of(store(dataset, "cpu"), dataset, Span(1, chunk, 0.99, release_windows=True))
    assert len(windows) == len(golden["chunks/start"])
    batch = windows.batch(torch.from_numpy(golden["chunks/start"].astype(np.int64)), EveryField)
    np.testing.assert_array_equal(batch.observations, golden["chunks/observations"])
    np.testing.assert_array_equal(batch.actions, golden["chunks/actions"].reshape(len(windows), -1))
    np.testing.assert_array_equal(batch.next_observations, golden["chunks/next_observations"][:, -1])
    np.testing.assert_array_equal(batch.valid, golden["chunks/valid"])
    np.testing.assert_allclose(batch.rewards, golden["chunks/rewards"][:, -1], rtol=1e-6)
    np.testing.assert_allclose(batch.masks, 0.99 ** (chunk - 1) * golden["chunks/masks"][:, -1], rtol=1e-6)


def test_more_steps_than_transitions_are_refused_in_the_releases_windows() -> None:
    dataset = episodes()
    with pytest.raises(DatasetError, match=f"expected at most {len(dataset)}, its transitions, found 100 steps"):
        windows_of(store(dataset, "cpu"), dataset, Span(100, release_windows=True))


def test_an_unknown_field_is_refused() -> None:
    class Wrong(NamedTuple):
        observations: torch.Tensor
        skills: torch.Tensor

    dataset = episodes()
    with pytest.raises(DatasetError, match=r"Wrong: expected fields among observations, .*, found skills"):
        made(dataset, Span()).batch(torch.arange(3), Wrong)


class WithReturns(NamedTuple):
    observations: torch.Tensor
    monte_carlo_returns: torch.Tensor
    monte_carlo_remainders: torch.Tensor


@pytest.mark.parametrize("span", [Span(discount=DISCOUNT), Span(2, 3, DISCOUNT)], ids=["transitions", "windows"])
def test_monte_carlo_returns_are_those_from_a_windows_first_transition_on(span: Span) -> None:
    dataset = episodes()
    windows = made(dataset, span)
    expected = monte_carlo_returns(dataset.rewards, dataset.masks, dataset.episode_ends, DISCOUNT)
    batch = windows.batch(torch.arange(len(windows)).view(1, -1), WithReturns)
    position = {tuple(row): index for index, row in enumerate(dataset.observations.tolist())}
    rows = [position[tuple(row)] for row in batch.observations[0].tolist()]
    np.testing.assert_array_equal(batch.monte_carlo_returns[0], expected.returns[rows])
    np.testing.assert_array_equal(batch.monte_carlo_remainders[0], expected.remainders[rows])
