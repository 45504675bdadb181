"""Random episodes: what every source makes of them equals what a slow, obvious reference makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.data.formats import write_d4rl, write_minari
from tql_lightning.data import checks
from tql_lightning.data.named import convert
from tql_lightning.data.sources.d4rl import load_d4rl
from tql_lightning.data.sources.minari import load_minari
from tql_lightning.data.sources.npy_folder import load_npy_folder
from tql_lightning.data.sources.npz import load_npz
from tql_lightning.data.sources.ogbench import _transitions
from tql_lightning.data.transitions import TransitionDataset

pytestmark = pytest.mark.filterwarnings("ignore:.*DISPLAY environment variable")
FIXED = settings(  # the same few examples on every run, on any machine
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Episode:
    """One recorded episode: T + 1 observations (T + 1, 2), T actions (T, 1) in [-1, 1], T rewards; how it ended."""

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: bool

    def __len__(self) -> int:
        return len(self.rewards)


@st.composite
def recordings(draw: st.DrawFn) -> list[Episode]:
    """One to five episodes of one to six transitions, no observation like another."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return [
        Episode(
            rng.normal(size=(length + 1, 2)).astype(np.float32),
            rng.uniform(-1, 1, size=(length, 1)).astype(np.float32),
            rng.normal(size=length).astype(np.float32),
            draw(st.booleans()),
        )
        for length in lengths
    ]


Row = tuple[Any, ...]


def reference(episodes: list[Episode], know_where_cuts_led: bool) -> list[Row]:
    """Transitions one by one: (s, a, r, s' or None where the mask hides it, mask, whether its episode ends).

    Args:
        episodes: what was recorded.
        know_where_cuts_led: whether the format keeps the observation after the last transition of a cut episode.
    """
    rows = []
    for episode in episodes:
        steps = len(episode)
        if not know_where_cuts_led and not episode.terminated:
            steps -= 1
        for t in range(steps):
            final = episode.terminated and t == len(episode) - 1
            rows.append(
                (
                    tuple(episode.observations[t]),
                    tuple(episode.actions[t]),
                    episode.rewards[t],
                    None if final else tuple(episode.observations[t + 1]),
                    0.0 if final else 1.0,
                    t == steps - 1,
                )
            )
    return rows


def rows_of(dataset: TransitionDataset) -> list[Row]:
    """A dataset's transitions in the form of the reference."""
    return [
        (
            tuple(dataset.observations[i]),
            tuple(dataset.actions[i]),
            dataset.rewards[i],
            tuple(dataset.next_observations[i]) if dataset.masks[i] else None,
            dataset.masks[i],
            bool(dataset.episode_ends[i]),
        )
        for i in range(len(dataset))
    ]


def table(episodes: list[Episode], with_next: bool, flags: type = bool) -> dict[str, Any]:
    """The episodes as arrays, a row for each transition."""
    arrays = {
        "observations": np.concatenate([episode.observations[:-1] for episode in episodes]),
        "actions": np.concatenate([episode.actions for episode in episodes]),
        "rewards": np.concatenate([episode.rewards for episode in episodes]),
        "terminations": np.zeros(sum(map(len, episodes)), dtype=flags),
        "truncations": np.zeros(sum(map(len, episodes)), dtype=flags),
    }
    if with_next:
        arrays["next_observations"] = np.concatenate([episode.observations[1:] for episode in episodes])
    end = -1
    for episode in episodes:
        end += len(episode)
        arrays["terminations" if episode.terminated else "truncations"][end] = 1
    return arrays


def through_npz(episodes: list[Episode], with_next: bool, folder: Path) -> TransitionDataset:
    np.savez(folder / "x.npz", **table(episodes, with_next))
    return load_npz(str(folder / "x.npz"))


def through_npy_folder(episodes: list[Episode], with_next: bool, folder: Path) -> TransitionDataset:
    (folder / "raw").mkdir()
    for name, array in table(episodes, with_next, np.float64).items():
        np.save(folder / "raw" / f"{name}.npy", array)
    convert(str(folder / "raw"), str(folder / "x"))
    return load_npy_folder(str(folder / "x"))


def through_d4rl(episodes: list[Episode], with_next: bool, folder: Path) -> TransitionDataset:
    arrays = table(episodes, with_next, np.uint8)
    arrays |= {"terminals": arrays.pop("terminations"), "timeouts": arrays.pop("truncations")}
    return load_d4rl(str(write_d4rl(folder / "x.hdf5", **arrays)))


SOURCES: list[Callable[[list[Episode], bool, Path], TransitionDataset]] = [
    through_npz,
    through_npy_folder,
    through_d4rl,
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three or so rows, so that episodes cross them."""
    monkeypatch.setattr(checks, "BLOCK_BYTES", 24)


@pytest.mark.filterwarnings("ignore:.*looks like a time limit")
@pytest.mark.parametrize("through", SOURCES, ids=lambda source: source.__name__)
@pytest.mark.parametrize("with_next", [True, False], ids=["with next", "without next"])
@given(episodes=recordings())
@FIXED
def test_a_file_gives_the_transitions_that_were_recorded(
    through: Callable[[list[Episode], bool, Path], TransitionDataset], with_next: bool, episodes: list[Episode]
) -> None:
    expected = reference(episodes, know_where_cuts_led=with_next)
    if not expected:
        return  # refused; see the table of bad inputs
    with TemporaryDirectory() as folder:
        assert rows_of(through(episodes, with_next, Path(folder))) == expected


@given(episodes=recordings())
@settings(FIXED, max_examples=10)
def test_minari_gives_the_transitions_that_were_recorded(episodes: list[Episode]) -> None:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    buffers = [
        EpisodeBuffer(
            id=number,
            observations=list(episode.observations),
            actions=list(episode.actions),
            rewards=list(episode.rewards),
            terminations=[False] * (len(episode) - 1) + [episode.terminated],
            truncations=[False] * (len(episode) - 1) + [not episode.terminated],
        )
        for number, episode in enumerate(episodes)
    ]
    spaces = {
        "observation_space": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32),
        "action_space": gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32),
    }
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", folder)
        write_minari("toy/set-v0", None, buffers, **spaces)
        assert rows_of(load_minari("toy/set-v0")) == reference(episodes, know_where_cuts_led=True)


@pytest.mark.parametrize("form", ["official", "full", "compact"])
@given(episodes=recordings())
@FIXED
def test_ogbench_files_give_the_transitions_that_were_recorded(form: str, episodes: list[Episode]) -> None:
    from ogbench.utils import load_dataset

    never = [replace(episode, terminated=False) for episode in episodes]  # OGBench's recordings only end
    padded = [np.concatenate([episode.actions, np.zeros((1, 1), np.float32)]) for episode in never]
    official = {
        "observations": np.concatenate([episode.observations for episode in never]),
        "actions": np.concatenate(padded),
        "terminals": np.concatenate([np.arange(len(episode) + 1) == len(episode) for episode in never]),
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        np.savez(path, **official)
        if form != "official":
            np.savez(path, **load_dataset(str(path), compact_dataset=form == "compact"))
        arrays = _transitions(path)
    rows = zip(arrays["observations"], arrays["actions"], arrays["next_observations"], arrays["terminals"], strict=True)
    ours = [(tuple(s), tuple(a), tuple(following), bool(end)) for s, a, following, end in rows]
    assert ours == [(s, a, following, end) for s, a, _, following, _, end in reference(never, True)]


@given(episodes=recordings(), data=st.data())
@FIXED
def test_returns_and_held_out_episodes_are_those_of_whole_episodes(
    episodes: list[Episode], data: st.DataObject
) -> None:
    dataset = TransitionDataset.from_arrays(**table(episodes, with_next=True), name="x")
    returns = [float(episode.rewards.sum(dtype=np.float64)) for episode in episodes]
    np.testing.assert_allclose(dataset.episode_returns(), returns, atol=1e-5)
    if len(episodes) > 1:
        held_out = data.draw(st.integers(1, len(episodes) - 1))
        split = dataset.hold_out(held_out / len(episodes))
        assert split.validation is not None
        assert rows_of(split) == reference(episodes[:-held_out], True)
        assert rows_of(split.validation) == reference(episodes[-held_out:], True)
