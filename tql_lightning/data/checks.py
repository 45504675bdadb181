"""Checks of a dataset's arrays, block by block, so that memory-mapped files are never copied whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tql_lightning.data.mapped import advise
from tql_lightning.trust.text import FileError

Array = NDArray[Any]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

ACTION_LIMIT = 1.0 - 1e-5  # the authors' release clips dataset actions here, inside the flow's range
BLOCK_BYTES = 1 << 24  # size of one block
SHORTEST_LIMIT = 3  # steps; fewer are more likely to be the problem's own length than a time limit
FEWEST_ALIKE = 3  # episodes whose equal lengths are no chance
BOUNDS_TOLERANCE = 1e-4  # rounding may put a scaled action this far outside its bounds


Allocate = Callable[[str, tuple[int, ...]], Floats]


class DatasetError(FileError):
    """A dataset cannot be used; the message names the field, what was expected and found, and the remedy.

    Examples:
        >>> from tql_lightning import load_dataset
        >>> try:
        ...     load_dataset("absent.npz")
        ... except DatasetError as error:
        ...     print(str(error).split(";")[0])
        absent.npz: no such file
    """


def in_memory(_: str, shape: tuple[int, ...]) -> Floats:
    """Allocates a float32 array in memory."""
    return np.empty(shape, dtype=np.float32)


def blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Splits an array (N, ...) into blocks of about 16 MB; yields the index of the first row and the block.

    At most one block of a memory-mapped file stays resident.
    """
    row_bytes = max(1, array.nbytes // max(1, len(array)))
    rows = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]
        advise(array, "MADV_DONTNEED")


def check_numbers(field: str, values: ArrayLike, rank: int, name: str) -> Array:
    """Checks that values are finite numbers within float32's range; memory-mapped arrays stay mapped.

    Args:
        field: Name of the array in errors.
        values: Array (N,) or (N, size).
        rank: Expected number of dimensions, 1 or 2.
        name: Name of the dataset.

    Raises:
        DatasetError: Wrong dtype or rank, no rows, or a number that is not finite, with its index.
    """
    array = as_array(field, values, name)
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{name}: {field}: expected numbers, found dtype {array.dtype}; convert it to float32")
    if array.ndim != rank:
        shape = "(transitions, size)" if rank == 2 else "(transitions,)"
        raise DatasetError(f"{name}: {field}: expected shape {shape}, found {array.shape}; reshape it")
    if 0 in array.shape:
        raise DatasetError(
            f"{name}: {field}: expected at least one transition, found shape {array.shape}; check what wrote it"
        )
    for start, block in blocks(array):
        finite = _finite(block)
        if not finite.all():
            row, *column = (int(index) for index in np.argwhere(~finite)[0])
            raise DatasetError(
                f"{name}: {field}: expected finite numbers of float32, found {block[row, *column]} at index "
                f"{(start + row, *column)}{_where_not_finite(array)}; remove such episodes"
            )
    return array


def as_array(field: str, values: ArrayLike, name: str) -> Array:
    """Converts values to an array.

    Raises:
        DatasetError: They form none, such as rows of different lengths.
    """
    try:
        return values if isinstance(values, np.ndarray) else np.asarray(values)
    except ValueError as error:  # rows of unequal lengths
        raise DatasetError(f"{name}: {field}: expected an array of numbers, found {error}; pad or split it") from error


def _finite(block: Array) -> Bools:
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite and is rejected
        return np.isfinite(block.astype(np.float32, copy=False))


def _where_not_finite(array: Array) -> str:
    rows, columns = 0, np.zeros(array.shape[1:], dtype=bool)
    for _, block in blocks(array):
        wrong = ~_finite(block)
        rows += int(wrong.reshape(len(block), -1).any(axis=1).sum())
        columns |= wrong.any(axis=0)
    named = f", columns {', '.join(map(str, np.flatnonzero(columns)))}" if columns.ndim else ""
    return f" ({rows} rows in all{named})"


def check_flags(field: str, values: ArrayLike, name: str) -> Array:
    """Checks that values (N,) are 0 or 1, of any dtype; raises as `check_numbers` does."""
    array = check_numbers(field, values, 1, name)
    for start, block in blocks(array):
        wrong = np.flatnonzero((block != 0) & (block != 1))
        if len(wrong):
            raise DatasetError(
                f"{name}: {field}: expected 0 or 1 (or bool), found {block[wrong[0]]} at index "
                f"{start + int(wrong[0])}; write 1 where it holds and 0 elsewhere"
            )
    return array


def check_actions(values: ArrayLike, name: str) -> Array:
    """Checks actions (N, n_a) as `check_numbers` does, and rejects discrete ones.

    Raises:
        DatasetError: They are no floating-point numbers, or as `check_numbers` says.
    """
    array = as_array("actions", values, name)
    if array.dtype.kind in "iub":
        raise DatasetError(
            f"{name}: actions: expected continuous actions of a floating-point dtype, found discrete ones of dtype "
            f"{array.dtype}, shape {array.shape}; policies here are for continuous actions. If they are continuous, "
            "write them as float32, (transitions, size)"
        )
    return check_numbers("actions", array, 2, name)


def warn_of_time_limits(name: str, episode_ends: Bools, terminal: Bools, limit: int | None = None) -> None:
    """Warns where terminations look like time limits, as of a file's ``dones``: no value would follow them.

    They do where half of all episodes, the longest, terminate after the same number of steps, or at a known limit.

    Args:
        name: Name of the dataset.
        episode_ends: Whether a row is the last of its episode, (N,).
        terminal: Whether the MDP terminated at a row, (N,).
        limit: The environment's time limit; None to compare episodes with each other alone.
    """
    ends = np.flatnonzero(episode_ends)
    lengths = np.diff(ends, prepend=-1)
    longest = int(lengths.max())

    def alike(length: int, fewest: float) -> int:
        """Number of episodes of this length, 0 if they are few or one did not terminate."""
        at = ends[lengths == length]
        return len(at) if len(at) >= max(FEWEST_ALIKE, fewest) and terminal[at].all() else 0

    found = alike(longest, len(ends) / 2) if longest >= SHORTEST_LIMIT else 0
    if limit is not None:  # the longest were warned of when the limit was not known yet
        found = 0 if found and limit == longest else alike(limit, 0)
    if found:
        warnings.warn(
            f"{name}: terminations: {found:,} of {len(ends):,} episodes terminate after exactly {limit or longest:,} "
            "steps, which looks like a time limit; no value follows a termination. If it is one, give these rows as "
            "truncations, and terminations of 0",
            stacklevel=3,
        )


def check_lengths(fields: Mapping[str, Array], name: str) -> None:
    """Checks that arrays have equally many rows, and next observations the shape of observations.

    Raises:
        DatasetError: Lengths or shapes differ.
    """
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
            f"found {fields['next_observations'].shape}; both need the same columns"
        )


def action_bounds(low: ArrayLike | None, high: ArrayLike | None, action_dim: int, name: str) -> tuple[Floats, Floats]:
    """Lower and upper bounds of an environment's actions, (n_a,) each; -1 and 1 where they are None.

    Raises:
        DatasetError: Wrong shape, not finite, or not low < high.
    """
    arrays = []
    for field, value, default in (("action_low", low, -1.0), ("action_high", high, 1.0)):
        array = as_array(field, default if value is None else value, name)
        if array.dtype.kind not in "fiu" or array.shape not in ((), (1,), (action_dim,)):
            raise DatasetError(
                f"{name}: {field}: expected {action_dim} bounds, found shape {array.shape} of {array.dtype}; "
                "give one number, or one for each column of actions"
            )
        arrays.append(np.array(np.broadcast_to(array.astype(np.float32), (action_dim,))))
    lower, upper = arrays
    if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower < upper).all()):
        raise DatasetError(
            f"{name}: action bounds: expected finite action_low < action_high, found {lower.tolist()} and "
            f"{upper.tolist()}; give the environment's bounds"
        )
    return lower, upper


def scale_actions(actions: Array, low: Floats, high: Floats, name: str, allocate: Allocate = in_memory) -> Floats:
    """Actions (N, n_a) in the environment's units -> float32 in [-1, 1], clipped to ``ACTION_LIMIT``.

    Returns the same array, mapped or not, if its actions are scaled and clipped already.

    Raises:
        DatasetError: An action lies outside the bounds; such actions are never clipped silently.
    """
    same = _usable(actions) and (low == -1.0).all() and (high == 1.0).all()
    if same and all((np.abs(block) <= np.float32(ACTION_LIMIT)).all() for _, block in blocks(actions)):
        return actions
    result = allocate("actions", actions.shape)
    for start, block in blocks(actions):
        scaled = (2.0 * (block.astype(np.float64) - low) / (high - low) - 1.0).astype(np.float32)
        outside = np.argwhere(np.abs(scaled) > 1.0 + BOUNDS_TOLERANCE)
        if len(outside):
            row, column = (int(index) for index in outside[0])
            values = actions[:, column]
            raise DatasetError(
                f"{name}: actions: expected values in [{low[column]:g}, {high[column]:g}], found "
                f"{float(block[row, column]):g} at index ({start + row}, {column}) and a range of "
                f"[{float(values.min()):g}, {float(values.max()):g}]; "
                "give the environment's bounds as action_low and action_high"
            )
        result[start : start + len(block)] = scaled.clip(-ACTION_LIMIT, ACTION_LIMIT)
    return result


def _usable(array: Array) -> bool:
    """Whether a tensor can share the array's memory."""
    return array.dtype == np.float32 and array.flags.c_contiguous


def select_rows(field: str, array: Array, keep: Bools | None, allocate: Allocate = in_memory) -> Floats:
    """Rows of an array where ``keep`` (N,) is true, as float32; the same array if nothing changes.

    Args:
        field: Name of the array, passed to ``allocate``.
        array: Array (N, ...).
        keep: Mask (N,) of the rows to keep; None for all.
        allocate: Allocates the result.
    """
    if _usable(array) and (keep is None or keep.all()):
        return array
    result = allocate(field, array.shape if keep is None else (int(keep.sum()), *array.shape[1:]))
    place = 0
    for start, block in blocks(array):
        kept = block if keep is None else block[keep[start : start + len(block)]]
        result[place : place + len(kept)] = kept
        place += len(kept)
    return result


def shift_within_episodes(
    observations: Array, terminated: Bools, keep: Bools, allocate: Allocate = in_memory
) -> Floats:
    """Next observations of the kept rows: the following row, or the row itself where the MDP terminated.

    Args:
        observations: Array (N, n_s).
        terminated: Mask (N,).
        keep: Mask (N,); false where an episode was truncated, because the following row starts another episode.
        allocate: Allocates the result.
    """
    result = allocate("next_observations", (int(keep.sum()), observations.shape[1]))
    place = 0
    for start, block in blocks(observations):
        rows = np.arange(start, start + len(block))[keep[start : start + len(block)]]
        result[place : place + len(rows)] = observations[np.where(terminated[rows], rows, rows + 1)]
        place += len(rows)
    return result


def check_fraction(validation_fraction: float) -> None:
    """Checks that the share of episodes to hold out lies in [0, 1).

    Raises:
        DatasetError: It does not.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise DatasetError(
            f"validation_fraction: expected at least 0 and below 1, found {validation_fraction}; 0.1 is usual"
        )
