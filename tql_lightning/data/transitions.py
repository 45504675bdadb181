"""One offline dataset: validated arrays, dimensions, episode boundaries."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tql_lightning.data.checks import ACTION_LIMIT as ACTION_LIMIT
from tql_lightning.data.checks import (
    Allocate,
    action_bounds,
    check_actions,
    check_flags,
    check_fraction,
    check_lengths,
    check_numbers,
    in_memory,
    scale_actions,
    select_rows,
    shift_within_episodes,
    warn_of_time_limits,
)
from tql_lightning.data.checks import DatasetError as DatasetError
from tql_lightning.data.scores import Scores, check_reference_scores, scores_in
from tql_lightning.data.scores import normalized_score as normalized_score
from tql_lightning.data.summary import summarise

Array = NDArray[Any]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


class _BuiltByPath:
    """Base without fields: jsonargparse builds such a class by class path, and plain dataclasses field by field."""


@dataclass(frozen=True, eq=False, repr=False)
class TransitionDataset(_BuiltByPath):
    """Checked transitions (s, a, r, s') of whole episodes; `from_arrays` builds one.

    Arrays may be read-only memory maps of files larger than memory.

    Attributes:
        observations: s, float32 (N, n_s).
        actions: a scaled to [-1, 1], float32 (N, n_a), clipped 1e-5 inside the range as in the authors' release.
        rewards: float32 (N,).
        next_observations: s', float32 (N, n_s).
        masks: float32 (N,), 0 where the MDP truly terminated, 1 elsewhere; a time limit never masks.
        episode_ends: bool (N,), whether a transition is the last of its episode.
        action_low: lower bounds of the environment's actions, float32 (n_a,).
        action_high: upper bounds of the environment's actions, float32 (n_a,).
        name: Name of the dataset in reports.
        env_id: Gymnasium id of its environment ("Pendulum-v1", "package:Env-v0"), or None.
        validation: held-out transitions, or None.
        reference_scores: returns of a random and of an expert policy (see `normalized_score`), or None.
        rows_left_out: Number of recorded rows that are no transitions, because their next observation is unknown.

    Examples:
        >>> ends = np.arange(40) % 20 == 19
        >>> dataset = TransitionDataset.from_arrays(
        ...     observations=np.zeros((40, 3)), actions=np.zeros((40, 1)), rewards=np.ones(40),
        ...     terminations=np.zeros(40), truncations=ends, name="mine",
        ... )
        >>> print(repr(dataset).splitlines()[2])
        transitions       38 (held out: 0)
        >>> len(dataset), dataset.rows_left_out, dataset.episode_returns()
        (38, 2, array([19., 19.]))
    """

    observations: Floats
    actions: Floats
    rewards: Floats
    next_observations: Floats
    masks: Floats
    episode_ends: Bools
    action_low: Floats
    action_high: Floats
    name: str
    env_id: str | None = None
    validation: TransitionDataset | None = None
    reference_scores: Scores | None = None
    rows_left_out: int = 0

    def __post_init__(self) -> None:
        name = _text("name", os.fspath(self.name) if isinstance(self.name, os.PathLike) else self.name)
        env_id = None if self.env_id is None else _text(f"{name}: env_id", self.env_id)
        scores = check_reference_scores(self.reference_scores, name)
        for field, value in {"name": name, "env_id": env_id, "reference_scores": scores}.items():
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        """The figures that ``tql data inspect`` prints; computed from every row."""
        return "\n".join(summarise(self).lines())

    def __len__(self) -> int:
        """Number of transitions, N."""
        return len(self.rewards)

    @property
    def observation_dim(self) -> int:
        """n_s."""
        return int(self.observations.shape[1])

    @property
    def action_dim(self) -> int:
        """n_a."""
        return int(self.actions.shape[1])

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """Smallest and largest reward of the transitions that continue; None if none does."""
        return _range(self.rewards[self.masks != 0.0])

    @property
    def final_reward_range(self) -> tuple[float, float] | None:
        """Smallest and largest reward of the transitions that terminate; None if none does."""
        return _range(self.rewards[self.masks == 0.0])

    @property
    def action_range(self) -> tuple[list[float], list[float]]:
        """Smallest and largest action of each dimension, in [-1, 1]."""
        return self.actions.min(axis=0).tolist(), self.actions.max(axis=0).tolist()

    def digest(self) -> str:
        """Checksum of 1,024 evenly spaced transitions, 16 digits; tells datasets of the same name and size apart."""
        at = np.linspace(0, len(self) - 1, 1024).astype(int)
        columns = (self.observations, self.actions, self.rewards, self.next_observations, self.masks)
        content = b"".join(np.ascontiguousarray(column[at], dtype="<f4").tobytes() for column in columns)
        return hashlib.sha256(content).hexdigest()[:16]

    def episode_returns(self) -> NDArray[np.float64]:
        """Undiscounted return of every whole episode, (episodes,)."""
        ends = np.flatnonzero(self.episode_ends)
        totals = np.cumsum(self.rewards, dtype=np.float64)[ends]
        return np.diff(totals, prepend=0.0)

    def hold_out(self, fraction: float) -> TransitionDataset:
        """The same dataset with its last episodes held out as ``validation``.

        Args:
            fraction: Share of the episodes to hold out, below 1. At least one episode is held out, unless it is 0.

        Raises:
            DatasetError: The share is out of range, or leaves no episode to train on.
        """
        check_fraction(fraction)
        if not fraction:
            return self
        ends = np.flatnonzero(self.episode_ends) + 1
        held_out = max(1, round(len(ends) * fraction))
        if held_out >= len(ends):
            raise DatasetError(
                f"{self.name}: validation_fraction={fraction} of {len(ends)} episodes leaves none to train on; lower it"
            )
        cut = int(ends[-held_out - 1])
        return replace(self._rows(slice(0, cut)), validation=self._rows(slice(cut, None)))

    def evaluated_in(self, env_id: str | None) -> TransitionDataset:
        """The same dataset with another environment to evaluate in; None leaves its own. See `scores_in`."""
        if env_id is None:
            return self
        scores = scores_in(env_id, self.env_id, self.reference_scores)
        return replace(self, env_id=env_id, reference_scores=scores)

    def _rows(self, rows: slice) -> TransitionDataset:
        names = ("observations", "actions", "rewards", "next_observations", "masks", "episode_ends")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @classmethod
    def from_arrays(
        cls,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        terminations: ArrayLike,
        truncations: ArrayLike,
        next_observations: ArrayLike | None = None,
        *,
        name: str,
        masks: ArrayLike | None = None,
        env_id: str | None = None,
        action_low: ArrayLike | None = None,
        action_high: ArrayLike | None = None,
        actions_scaled: bool = False,
        validation: TransitionDataset | None = None,
        reference_scores: ArrayLike | None = None,
        allocate: Allocate = in_memory,
    ) -> TransitionDataset:
        """Checks arrays of transitions in the order of recording, and scales the actions.

        An array that needs no change is used without a copy: float32, no row to leave out, actions already scaled and
        clipped.

        Args:
            observations: Array (N, n_s).
            actions: Array (N, n_a) in the environment's units.
            rewards: Array (N,).
            terminations: Flags (N,), true where the MDP ended with this transition (bool, or 0 and 1).
            truncations: Flags (N,), true where the episode was cut, e.g. by a time limit.
            next_observations: Array (N, n_s). Default: the next row's observation within each episode. The last
                transition of a truncated episode is then left out, because its next observation is unknown; that of a
                terminated episode stays with its own observation, which its mask hides.
            name: Name of the dataset in reports.
            masks: Flags (N,), 0 where no value follows, for data that go on after a goal was reached. Default: 0 where
                the MDP terminated.
            env_id: Gymnasium id of the environment.
            action_low: Lower bounds of the actions, (n_a,) or a number; default -1.
            action_high: Upper bounds of the actions, (n_a,) or a number; default 1.
            actions_scaled: Whether the actions are already scaled from these bounds to [-1, 1].
            validation: Held-out transitions.
            reference_scores: Returns of a random and of an expert policy, (2,).
            allocate: Allocates an array, by name and shape, for one that must change; default: in memory.

        Raises:
            DatasetError: An array is wrong; the message says how and where.
        """
        fields = {
            "observations": check_numbers("observations", observations, 2, name),
            "actions": check_actions(actions, name),
            "rewards": check_numbers("rewards", rewards, 1, name),
            "terminations": check_flags("terminations", terminations, name),
            "truncations": check_flags("truncations", truncations, name),
        }
        if next_observations is not None:
            fields["next_observations"] = check_numbers("next_observations", next_observations, 2, name)
        if masks is not None:
            fields["masks"] = check_flags("masks", masks, name)
        check_lengths(fields, name)
        terminated = fields["terminations"].astype(bool)
        ends = terminated | fields["truncations"].astype(bool)
        if not ends[-1]:
            raise DatasetError(
                f"{name}: truncations: expected 1 at index {len(ends) - 1}, found 0: the last transition neither "
                "terminates nor is truncated; mark where each episode ends (a time limit, or the end of the recording, "
                "is a truncation)"
            )
        if masks is not None:
            _check_masks(fields, terminated, name)
        warn_of_time_limits(name, ends, terminated)
        low, high = action_bounds(action_low, action_high, fields["actions"].shape[1], name)
        scale_from = (-np.ones_like(low), np.ones_like(high)) if actions_scaled else (low, high)
        columns = {
            "observations": fields["observations"],
            "actions": scale_actions(fields["actions"], *scale_from, name, allocate),
            "rewards": fields["rewards"],
            "masks": fields.get("masks", ~terminated),
        }
        if next_observations is not None:
            columns["next_observations"] = fields["next_observations"]
            kept = {field: select_rows(field, array, None, allocate) for field, array in columns.items()}
        else:
            keep = terminated | ~ends  # the next observation of a truncated episode's last row is unknown
            if not keep.any():
                raise DatasetError(
                    f"{name}: every episode has one row and no next_observations; nothing is left. Add them"
                )
            kept = {field: select_rows(field, array, keep, allocate) for field, array in columns.items()}
            kept["next_observations"] = shift_within_episodes(fields["observations"], terminated, keep, allocate)
            ends = (ends & terminated | np.append(~keep[1:], False))[keep]
        return cls(
            **kept,
            episode_ends=ends,
            action_low=low,
            action_high=high,
            name=name,
            env_id=env_id,
            validation=validation,
            reference_scores=check_reference_scores(reference_scores, name),
            rows_left_out=len(fields["rewards"]) - len(ends),
        )


def _text(field: str, value: object) -> str:
    """Plain text, which a checkpoint can hold."""
    if not isinstance(value, str):
        raise DatasetError(
            f"{field}: expected text, found {type(value).__name__}; give a name, or for env_id a Gymnasium id or the "
            "specification's to_json()"
        )
    return "".join(value)


def _range(values: Floats) -> tuple[float, float] | None:
    return (float(values.min()), float(values.max())) if len(values) else None


def _check_masks(fields: dict[str, Array], terminated: Bools, name: str) -> None:
    wrong = np.flatnonzero(terminated & (fields["masks"] != 0))
    if len(wrong):
        raise DatasetError(
            f"{name}: masks: expected 0 where terminations are 1, found 1 at index {int(wrong[0])}; no value follows "
            "a termination, and a time limit is a truncation"
        )
