"""Figures about a dataset: sizes, episodes, returns, ranges, constant columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.checks import blocks
from tql_lightning.data.scores import normalized_score

FIELDS = ("observations", "actions", "rewards", "next_observations", "masks")
BINS = 12
BAR = 40  # characters of the longest bar


@dataclass(frozen=True)
class Column:
    """Range of the columns of one array.

    Attributes:
        field: name of the array.
        shape: its shape.
        dtype: its dtype.
        mapped: Whether it is a file mapped into memory.
        low: smallest value of each column, (n,).
        high: largest value of each column, (n,).
    """

    field: str
    shape: tuple[int, ...]
    dtype: str
    mapped: bool
    low: NDArray[Any]
    high: NDArray[Any]

    @property
    def constant(self) -> list[int]:
        """Indices of columns with a single value."""
        return [int(index) for index in np.flatnonzero(self.low == self.high)]


@dataclass(frozen=True)
class Summary:
    """Figures of a dataset.

    Attributes:
        dataset: the `TransitionDataset`, whose module imports this one.
        columns: Columns of each array.
        lengths: transitions of each episode, (episodes,).
        returns: undiscounted return of each episode, (episodes,).
        terminals: Number of transitions after which no value follows.
        cut_episodes: Number of episodes that end with a time limit or with the recording.
    """

    dataset: Any
    columns: list[Column]
    lengths: NDArray[Any]
    returns: NDArray[np.float64]
    terminals: int
    cut_episodes: int

    def lines(self) -> list[str]:
        """The figures as a few dozen lines of text."""
        dataset = self.dataset
        held_out = 0 if dataset.validation is None else len(dataset.validation)
        lines = [
            f"{dataset.name}",
            f"environment       {dataset.env_id or 'not named'}",
            f"transitions       {len(dataset):,} (held out: {held_out:,})",
            *self._left_out(),
            f"episodes          {len(self.lengths):,}",
            f"episode length    {_spread(self.lengths, '.0f')}",
            f"return            {_spread(self.returns)}",
        ]
        if dataset.reference_scores is not None:
            random, expert = dataset.reference_scores
            scores = normalized_score(self.returns, dataset.reference_scores)
            lines.append(f"normalised score  {_spread(scores)} (0 = {random:g}, 100 = {expert:g})")
        lines += [
            f"terminals         {self.terminals:,} ({self.terminals / len(dataset):.3%} of transitions)",
            f"cut by time       {self.cut_episodes:,} of {len(self.lengths):,} episodes",
            f"action bounds     {_vector(dataset.action_low)} to {_vector(dataset.action_high)} (scaled to ±1 below)",
            "",
            f"{'array':20}{'shape':>18}{'dtype':>10}{'where':>9}{'min':>12}{'max':>12}  constant columns",
        ]
        for column in self.columns:
            where = "mapped" if column.mapped else "memory"
            constant = ", ".join(map(str, column.constant)) if len(column.shape) == 2 else ""
            lines.append(
                f"{column.field:20}{column.shape!s:>18}{column.dtype:>10}{where:>9}"
                f"{column.low.min():12.4g}{column.high.max():12.4g}  {constant or '-'}"
            )
        return [*lines, "", "returns of the episodes", *histogram(self.returns)]

    def _left_out(self) -> list[str]:
        rows = self.dataset.rows_left_out
        if not rows:
            return []
        why = "the last of each episode that was cut, as no next observation is recorded for it"
        return [f"rows left out     {rows:,}: {why}; add next_observations to keep them"]


def summarise(dataset: Any) -> Summary:
    """Computes the figures of a dataset block by block; mapped arrays are never copied whole."""
    columns = []
    for field in FIELDS:
        array = getattr(dataset, field)
        pieces = [(block.min(axis=0), block.max(axis=0)) for _, block in blocks(array)]
        low = np.atleast_1d(np.min([piece[0] for piece in pieces], axis=0))
        high = np.atleast_1d(np.max([piece[1] for piece in pieces], axis=0))
        columns.append(Column(field, array.shape, str(array.dtype), isinstance(array, np.memmap), low, high))
    ends = np.flatnonzero(dataset.episode_ends)
    return Summary(
        dataset,
        columns,
        lengths=np.diff(ends, prepend=-1),
        returns=dataset.episode_returns(),
        terminals=int(np.count_nonzero(dataset.masks == 0)),
        cut_episodes=int(np.count_nonzero(dataset.masks[ends] != 0)),
    )


def histogram(values: NDArray[Any]) -> list[str]:
    """Histogram as lines of text."""
    counts, edges = np.histogram(values, bins=BINS)
    longest = max(1, int(counts.max()))
    return [
        f"{low:12.4g} to {high:<12.4g}{count:9,}  {'█' * round(BAR * count / longest) or ('▏' if count else '')}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _spread(values: NDArray[Any], form: str = ".4g") -> str:
    lowest, quarter, median, three, highest = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    named: Sequence[tuple[str, float]] = (
        ("min", lowest),
        ("25 %", quarter),
        ("median", median),
        ("mean", float(np.mean(values))),
        ("75 %", three),
        ("max", highest),
    )
    return ", ".join(f"{name} {value:{form}}" for name, value in named)


def _vector(values: NDArray[Any]) -> str:
    if (values == values[0]).all():
        return f"{values[0]:g}"
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
