"""What one row of a batch spans: actions taken open loop, and rewards summed before the value is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tql_lightning.batch import Batch
from tql_lightning.data.returns import monte_carlo_returns
from tql_lightning.data.storage import Storage, TensorStorage
from tql_lightning.data.transitions import DatasetError, TransitionDataset


@dataclass(frozen=True)
class Span:
    """How far one decision and its target reach.

    With one step and one action a row of a batch is a transition of the dataset, and ``discount`` is not used.

    Attributes:
        n_step: decisions whose rewards are summed before the value of the next is added (n-step returns).
        action_chunk: h, actions that one decision is made of and that are taken without looking again
            (Q-chunking, arXiv 2507.07969).
        discount: gamma, of one step of the environment.
        release_windows: windows of Q-chunking's release, see `ReleaseWindows`, instead of the project's.

    Raises:
        ValueError: ``n_step`` or ``action_chunk`` is below 1, or ``discount`` is not between 0 and 1.
    """

    n_step: int = 1
    action_chunk: int = 1
    discount: float = 0.99
    release_windows: bool = False

    def __post_init__(self) -> None:
        for name in ("n_step", "action_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}: expected at least 1, found {getattr(self, name)}")
        if not 0.0 <= self.discount <= 1.0:
            raise ValueError(
                f"model.discount, which is also data.discount: expected between 0 and 1, found {self.discount}"
            )

    @property
    def steps(self) -> int:
        """Environment steps that a target reaches at most."""
        return self.n_step * self.action_chunk


BLOCK = 1 << 18  # steps of a table that are computed at once


class Reach(NamedTuple):
    """What windows (...) reach, but for observations and actions.

    Attributes:
        first: t, int64.
        final: t+m-1, int64.
        rewards: discounted sum; None where a window is a transition.
        masks: discounted mask of the last transition; None where a window is a transition.
        known: actions of the chunk that the episode has, int64; None where no window lacks any.
    """

    first: Tensor
    final: Tensor
    rewards: Tensor | None
    masks: Tensor | None
    known: Tensor | None


class Windows:
    """The rows that a batch may be made of, each a window of steps that starts at a transition.

    A window of ``span.steps`` ends early, after m steps, with its episode or with the first transition whose mask
    is 0. From transition t on, its row is

        observations      s_t
        actions           a_t ... a_{t+h-1}, one after the other, (h * n_a,)
        rewards           r_t + gamma r_{t+1} + ... + gamma^{m-1} r_{t+m-1}
        next_observations s_{t+m}
        masks             gamma^{m-1} times the mask of transition t+m-1
        next_actions      a_{t+m} ... a_{t+m+h-1}, (h * n_a,); 0 where the episode does not have them all
        next_action_known 1 where it has them, else 0
        terminals         1 where transition t+m-1 is the last of its episode's recording, else 0
        valid             1 for each of the window's steps, (span.steps,)
        monte_carlo_returns, monte_carlo_remainders
                          discounted rewards from t to the end of the trajectory, and the discount that is left where
                          it was cut; see `data.returns.MonteCarloReturns`

    so that reward + gamma * mask * value stays the target; of these a batch has the fields that are asked for. A
    window starts only where the episode has h more actions, since those after a time limit are unknown. (The authors
    of Q-chunking give such rows no weight in the critic's loss; leaving them out does the same and keeps every row of
    a batch.) After a true termination actions have no effect: there windows start at every transition,
    and missing actions are 0.

    Args:
        storage: holds the transitions.
        dataset: the transitions; their episodes are read from it.
        span: Span of a window.

    Raises:
        DatasetError: no episode has as many actions as a chunk.
    """

    def __init__(self, storage: Storage, dataset: TransitionDataset, span: Span) -> None:
        self.storage = storage
        self.span = span
        self.action_dim = span.action_chunk * dataset.action_dim
        self._size = len(dataset)
        self._table: dict[str, Tensor] = {}
        self._looks_up = span.steps == 1
        self._dataset = dataset
        self._ends = torch.from_numpy(dataset.episode_ends.nonzero()[0]).to(storage.device)
        self._count(dataset)

    def _count(self, dataset: TransitionDataset) -> None:
        """Finds where windows start."""
        span, storage = self.span, self.storage
        if span.steps == 1:
            return
        device = storage.device
        self._starts = torch.cat([self._ends.new_zeros(1), self._ends[:-1] + 1])
        lengths = self._ends - self._starts + 1
        terminated = storage.take("masks", self._ends) == 0
        counts = torch.where(terminated, lengths, (lengths - span.action_chunk + 1).clamp(min=0))
        self._cumulative = counts.cumsum(0)
        self._size = int(self._cumulative[-1])
        self._powers = span.discount ** torch.arange(span.steps, dtype=torch.float64, device=device)
        if self._size == 0:
            raise DatasetError(
                f"data.action_chunk: {dataset.name}: expected at most {int(lengths.max())}, its longest episode, "
                f"found {span.action_chunk}"
            )
        self._some_missing = span.action_chunk > 1 and bool(terminated.any())

    def __len__(self) -> int:
        """Number of windows."""
        return self._size

    def tabulate(self) -> None:
        """Works out once what every window reaches, so that batches look it up; 16 to 32 bytes a window.

        Nothing happens where transitions are not in memory, or where a window is a transition.
        """
        if self.span.steps == 1 or not isinstance(self.storage, TensorStorage):
            return
        every, block = torch.arange(self._size, device=self.storage.device), max(1, BLOCK // self.span.steps)
        parts = [self._reach(every[start : start + block]) for start in range(0, self._size, block)]
        columns = zip(Reach._fields, zip(*parts, strict=True), strict=True)
        self._table = {name: torch.cat(column) for name, column in columns if column[0] is not None}
        self._looks_up = True
        if self.span.action_chunk == 1:
            del self._table["first"]  # a window starts at every transition

    def batch(self, positions: Tensor, kind: type[Any] = Batch) -> Any:
        """The rows of windows, on the device that trains.

        Args:
            positions: Windows among all, 0 <= position < len(self), (..., B), on the storage's device.
            kind: NamedTuple class whose fields are gathered.

        Returns:
            A ``kind`` with leading dimensions (..., B).

        Raises:
            DatasetError: There is no such field.
        """
        unknown = [name for name in kind._fields if name not in FIELDS]
        if unknown:
            raise DatasetError(
                f"{kind.__name__}: expected fields among {', '.join(FIELDS)}, found {', '.join(unknown)}"
            )
        reach = self._look_up(positions) if self._looks_up else self._reach(positions)
        return self.storage.deliver(kind(*(FIELDS[name](self, reach) for name in kind._fields)))

    def _actions(self, reach: Reach) -> Tensor:
        chunk = self.span.action_chunk
        if chunk == 1:
            return self.storage.take("actions", reach.first)
        actions = self.storage.take_runs("actions", reach.first, chunk)
        if reach.known is not None:
            missing = torch.arange(chunk, device=actions.device) >= reach.known.unsqueeze(-1)
            actions = actions.masked_fill(missing.unsqueeze(-1), 0.0)
        return actions.flatten(-2)

    def _last(self, rows: Tensor) -> Tensor:
        """The last transition of the episode of each transition."""
        return self._ends[torch.searchsorted(self._ends, rows)]

    def _next_action_known(self, reach: Reach) -> Tensor:
        return (reach.final + self.span.action_chunk <= self._last(reach.final)).float()

    def _next_actions(self, reach: Reach) -> Tensor:
        following = (reach.final + 1).clamp(max=int(self._ends[-1]))
        actions = self.storage.take_runs("actions", following, self.span.action_chunk).flatten(-2)
        return actions * self._next_action_known(reach).unsqueeze(-1)

    @cached_property
    def _monte_carlo(self) -> dict[str, Tensor]:
        """Returns of all transitions by name, worked out when first asked for; 8 bytes a transition."""
        rewards, masks, ends = self._dataset.rewards, self._dataset.masks, self._dataset.episode_ends
        columns = monte_carlo_returns(rewards, masks, ends, self.span.discount)._asdict()
        return {name: torch.from_numpy(column).to(self.storage.device) for name, column in columns.items()}

    def _valid(self, reach: Reach) -> Tensor:
        return torch.ones(*reach.first.shape, self.span.steps, device=reach.first.device)

    def _look_up(self, positions: Tensor) -> Reach:
        flat = positions.flatten()
        found: dict[str, Any] = {"first": positions, "final": positions, "rewards": None, "masks": None, "known": None}
        found |= {name: column.index_select(0, flat).view(positions.shape) for name, column in self._table.items()}
        return Reach(**found)

    def _reach(self, positions: Tensor) -> Reach:
        """Goes through the windows step by step."""
        take = self.storage.take
        episode = torch.searchsorted(self._cumulative, positions, right=True)
        before = torch.where(episode > 0, self._cumulative[episode - 1], 0)
        first, last = self._starts[episode] + positions - before, self._ends[episode]
        steps = first.unsqueeze(-1) + torch.arange(self.span.steps, device=first.device)
        inside = steps <= last.unsqueeze(-1)
        steps = torch.minimum(steps, last.unsqueeze(-1))
        masks = take("masks", steps)
        goes_on = torch.cat([torch.ones_like(masks[..., :1]), masks[..., :-1].cumprod(dim=-1)], dim=-1) > 0
        taken = inside & goes_on
        final = taken.sum(dim=-1, keepdim=True) - 1  # m - 1
        discounts = self._powers.to(masks.dtype)
        return Reach(
            first=first,
            final=first + final.squeeze(-1),
            rewards=(take("rewards", steps) * taken * discounts).sum(dim=-1),
            masks=(masks.gather(-1, final) * discounts[final]).squeeze(-1),
            known=inside[..., : self.span.action_chunk].sum(dim=-1) if self._some_missing else None,
        )


FIELDS: dict[str, Callable[[Windows, Reach], Tensor]] = {
    "observations": lambda windows, reach: windows.storage.take("observations", reach.first),
    "actions": Windows._actions,
    "rewards": lambda windows, reach: (
        windows.storage.take("rewards", reach.first) if reach.rewards is None else reach.rewards
    ),
    "next_observations": lambda windows, reach: windows.storage.take("next_observations", reach.final),
    "masks": lambda windows, reach: windows.storage.take("masks", reach.first) if reach.masks is None else reach.masks,
    "next_actions": Windows._next_actions,
    "next_action_known": Windows._next_action_known,
    "terminals": lambda windows, reach: (reach.final == windows._last(reach.final)).float(),
    "valid": lambda windows, reach: windows._valid(reach),
    "monte_carlo_returns": lambda windows, reach: windows._monte_carlo["returns"][reach.first],
    "monte_carlo_remainders": lambda windows, reach: windows._monte_carlo["remainders"][reach.first],
}


class ReleaseWindows(Windows):
    """The windows of Q-chunking's release (arXiv 2507.07969): any ``span.steps`` rows one after the other.

    They run over the ends of episodes and over successes: rewards go on being summed, the mask is 0 if any is, and
    ``valid`` is 1 for the steps up to the end of the episode of the first. A window that ends with its episode is
    valid.

    Args:
        storage: holds the transitions.
        dataset: the transitions; their episodes are read from it.
        span: Span of a window.

    Raises:
        DatasetError: there are fewer transitions than steps.
    """

    def _count(self, dataset: TransitionDataset) -> None:
        self._size = len(dataset) - self.span.steps + 1
        if self._size < 1:
            raise DatasetError(
                f"data.action_chunk: {dataset.name}: expected at most {len(dataset)}, its transitions, found "
                f"{self.span.steps} steps of a window"
            )
        powers = torch.arange(self.span.steps, dtype=torch.float64, device=self.storage.device)
        self._powers = self.span.discount**powers

    def tabulate(self) -> None:
        """Does nothing: what a window reaches is two look-ups."""

    def _valid(self, reach: Reach) -> Tensor:
        steps = reach.first.unsqueeze(-1) + torch.arange(self.span.steps, device=reach.first.device)
        return (steps <= self._last(reach.first).unsqueeze(-1)).float()

    def _reach(self, positions: Tensor) -> Reach:
        steps, discounts = self.span.steps, self._powers.float()
        return Reach(
            first=positions,
            final=positions + steps - 1,
            rewards=(self.storage.take_runs("rewards", positions, steps) * discounts).sum(dim=-1),
            masks=self.storage.take_runs("masks", positions, steps).amin(dim=-1) * discounts[-1],
            known=None,
        )


def windows_of(storage: Storage, dataset: TransitionDataset, span: Span) -> Windows:
    """The project's windows, or those of the release where ``span`` says so; see `Windows` for the arguments."""
    return (ReleaseWindows if span.release_windows else Windows)(storage, dataset, span)
