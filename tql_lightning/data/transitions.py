"""One offline dataset: validated arrays, dimensions, episode boundaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

ACTION_LIMIT = 1.0 - 1e-5  # where the authors' release clips dataset actions, so that the flow stays inside


class DatasetError(ValueError):
    """A dataset cannot be used; the message names the field, what was expected, what was found, the remedy."""


@dataclass(frozen=True, eq=False)
class TransitionDataset:
    """Validated transitions (s, a, r, s') of whole episodes; build one with `from_arrays`.

    Attributes:
        observations: s, float32 (N, n_s).
        actions: a scaled to [-1, 1], float32 (N, n_a), clipped to 1e-5 inside it as in the authors' release.
        rewards: float32 (N,).
        next_observations: s', float32 (N, n_s).
        masks: float32 (N,), 0 where the MDP truly terminated, 1 elsewhere; a time limit never masks.
        episode_ends: bool (N,), whether a transition is the last of its episode.
        action_low: lower bounds of the environment's actions, float32 (n_a,).
        action_high: upper bounds of the environment's actions, float32 (n_a,).
        name: what reports call the dataset.
        env_id: Gymnasium id of its environment ("Pendulum-v1", "package:Env-v0"), or None.
        validation: held-out transitions, or None.
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

    def episode_returns(self) -> NDArray[np.float64]:
        """Undiscounted return of every whole episode, (episodes,)."""
        ends = np.flatnonzero(self.episode_ends)
        totals = np.cumsum(self.rewards, dtype=np.float64)[ends]
        return np.diff(totals, prepend=0.0)

    def hold_out(self, fraction: float) -> TransitionDataset:
        """The same dataset with its last episodes held out as ``validation``.

        Args:
            fraction: share of the episodes to hold out, above 0 and below 1; at least one is.

        Raises:
            DatasetError: no episode would be left to train on.
        """
        ends = np.flatnonzero(self.episode_ends) + 1
        held_out = max(1, round(len(ends) * fraction))
        if held_out >= len(ends):
            raise DatasetError(
                f"{self.name}: validation_fraction={fraction} of {len(ends)} episodes leaves none to train on; lower it"
            )
        cut = int(ends[-held_out - 1])
        return replace(self._rows(slice(0, cut)), validation=self._rows(slice(cut, None)))

    def with_masks(self, masks: Floats) -> TransitionDataset:
        """The same dataset with other masks, (N,): 0 where no value follows. Episode ends stay as they are."""
        if masks.shape != self.rewards.shape or not np.isin(masks, (0.0, 1.0)).all():
            raise DatasetError(f"{self.name}: masks: expected {self.rewards.shape} of 0 and 1, found {masks.shape}")
        return replace(self, masks=masks.astype(np.float32))

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
        env_id: str | None = None,
        action_low: ArrayLike | None = None,
        action_high: ArrayLike | None = None,
        validation: TransitionDataset | None = None,
    ) -> TransitionDataset:
        """Checks arrays of transitions, in the order they were made, and scales the actions.

        Args:
            observations: (N, n_s).
            actions: (N, n_a) in the environment's units.
            rewards: (N,).
            terminations: (N,), whether the MDP ended with this transition (bool, or 0 and 1).
            truncations: (N,), whether the episode was cut short here, e.g. by a time limit.
            next_observations: (N, n_s). Without them the following row's observation is taken within each
                episode. The last transition of an episode that did not terminate is then left out, as nobody
                knows where it led; one that terminated stays, with its own observation in the place that its
                mask hides.
            name: what reports call the dataset.
            env_id: Gymnasium id of the environment.
            action_low: lower bounds of the actions, (n_a,) or a number; -1 if not given.
            action_high: upper bounds of the actions, (n_a,) or a number; 1 if not given.
            validation: held-out transitions.

        Raises:
            DatasetError: something is wrong with an array; the message says what and where.
        """
        fields: dict[str, NDArray[np.generic]] = {
            "observations": _numbers("observations", observations, 2, name),
            "actions": _numbers("actions", actions, 2, name),
            "rewards": _numbers("rewards", rewards, 1, name),
            "terminations": _flags("terminations", terminations, name),
            "truncations": _flags("truncations", truncations, name),
        }
        if next_observations is not None:
            fields["next_observations"] = _numbers("next_observations", next_observations, 2, name)
        _check_lengths(fields, name)
        low, high = _bounds(action_low, action_high, fields["actions"].shape[1], name)
        terminated = fields["terminations"].astype(bool)
        ends = terminated | fields["truncations"].astype(bool)
        if not ends[-1]:
            raise DatasetError(
                f"{name}: the last transition neither terminates nor is truncated; mark where each episode ends "
                "(a time limit, or the end of the recording, is a truncation)"
            )
        keep = np.ones(len(ends), dtype=bool)
        if next_observations is None:
            shifted = np.roll(fields["observations"], -1, axis=0)
            shifted[terminated] = fields["observations"][terminated]
            fields["next_observations"] = shifted
            keep = terminated | ~ends  # an unterminated last row leads nowhere known
            ends = ends & terminated | np.append(~keep[1:], False)
            if not keep.any():
                raise DatasetError(f"{name}: every episode has one row and no next_observations; nothing is left")
        actions_scaled = _scale_actions(fields["actions"], low, high, name)

        def kept(field: str) -> Floats:
            return fields[field][keep].astype(np.float32, copy=False)  # the mask has copied already

        return cls(
            observations=kept("observations"),
            actions=actions_scaled[keep].clip(-ACTION_LIMIT, ACTION_LIMIT),
            rewards=kept("rewards"),
            next_observations=kept("next_observations"),
            masks=(~terminated[keep]).astype(np.float32),
            episode_ends=ends[keep],
            action_low=low,
            action_high=high,
            name=name,
            env_id=env_id,
            validation=validation,
        )


def _range(values: Floats) -> tuple[float, float] | None:
    return (float(values.min()), float(values.max())) if len(values) else None


def _numbers(field: str, values: ArrayLike, rank: int, name: str) -> NDArray[np.generic]:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{name}: {field}: expected numbers, found dtype {array.dtype}; convert it to float32")
    if array.ndim != rank:
        shape = "(transitions, size)" if rank == 2 else "(transitions,)"
        raise DatasetError(f"{name}: {field}: expected shape {shape}, found {array.shape}; reshape it")
    if 0 in array.shape:
        raise DatasetError(f"{name}: {field}: expected at least one transition, found shape {array.shape}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
        finite = np.isfinite(array.astype(np.float32, copy=False))
    if not finite.all():
        where = tuple(int(index) for index in np.argwhere(~finite)[0])
        raise DatasetError(
            f"{name}: {field}: expected finite numbers of float32, found {array[where]} at index {where}; "
            "remove that episode"
        )
    return array


def _flags(field: str, values: ArrayLike, name: str) -> NDArray[np.generic]:
    array = _numbers(field, values, 1, name)
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if len(wrong):
        raise DatasetError(
            f"{name}: {field}: expected 0 or 1 (or bool), found {array[wrong[0]]} at index {int(wrong[0])}"
        )
    return array


def _check_lengths(fields: Mapping[str, NDArray[np.generic]], name: str) -> None:
    size = len(fields["observations"])
    for field, array in fields.items():
        if len(array) != size:
            raise DatasetError(
                f"{name}: {field}: expected {size} transitions as in observations, found {len(array)}; "
                "every array has one row per transition"
            )
    if "next_observations" in fields and fields["next_observations"].shape != fields["observations"].shape:
        raise DatasetError(
            f"{name}: next_observations: expected shape {fields['observations'].shape} as observations, "
            f"found {fields['next_observations'].shape}"
        )


def _bounds(low: ArrayLike | None, high: ArrayLike | None, action_dim: int, name: str) -> tuple[Floats, Floats]:
    arrays = []
    for field, value, default in (("action_low", low, -1.0), ("action_high", high, 1.0)):
        array = np.asarray(default if value is None else value, dtype=np.float32)
        if array.shape not in ((), (1,), (action_dim,)):
            raise DatasetError(f"{name}: {field}: expected {action_dim} bounds, found shape {array.shape}")
        arrays.append(np.array(np.broadcast_to(array, (action_dim,))))
    lower, upper = arrays
    if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower < upper).all()):
        raise DatasetError(
            f"{name}: action bounds: expected finite action_low < action_high, found {lower.tolist()} and "
            f"{upper.tolist()}"
        )
    return lower, upper


def _scale_actions(actions: NDArray[np.generic], low: Floats, high: Floats, name: str) -> Floats:
    scaled = (2.0 * (actions.astype(np.float64) - low) / (high - low) - 1.0).astype(np.float32)
    outside = np.argwhere(np.abs(scaled) > 1.0 + 1e-4)
    if len(outside):
        row, column = (int(index) for index in outside[0])
        found = actions[:, column].astype(np.float64)
        raise DatasetError(
            f"{name}: actions: expected values in [{low[column]:g}, {high[column]:g}], found "
            f"{found[row]:g} at index ({row}, {column}) and a range of [{found.min():g}, {found.max():g}]; "
            "give the environment's bounds as action_low and action_high"
        )
    return scaled
