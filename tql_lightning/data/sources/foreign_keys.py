"""Arrays of files that other programs wrote: their names, and dones that mix terminations with time limits."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.checks import check_flags
from tql_lightning.data.transitions import DatasetError

DONES = "dones"  # true where an episode ended for either reason
OTHER_NAMES = {  # our name -> what other libraries call it
    "observations": ("obs", "observation", "states", "state"),
    "actions": ("acts", "action", "act"),
    "rewards": ("reward", "rews", "rew"),
    "terminations": ("terminals", "terminal", "terminated", "terminateds", "termination"),
    "truncations": ("timeouts", "timeout", "truncated", "truncateds", "truncation"),
    "next_observations": ("next_obs", "next_observation", "next_states", "next_state", "obs_next", "new_obs"),
    DONES: ("done", "d"),
}


def suggest_keys(absent: Collection[str], unknown: Collection[str]) -> dict[str, str]:
    """Our names of absent arrays -> the unknown arrays of a file that are probably meant."""
    found = {}
    left = {name: name.lower().rpartition("/")[2] for name in unknown}
    for ours in absent:
        known = [name for name, last in left.items() if last in OTHER_NAMES.get(ours, ())]
        match = known or difflib.get_close_matches(ours, left, n=1, cutoff=0.8)
        if match:
            found[ours] = match[0]
            del left[match[0]]
    return found


def rename(path: Path, fields: Mapping[str, Any], keys: Mapping[str, str] | None) -> dict[str, Any]:
    """A file's arrays under our names.

    Args:
        path: Path of the file or folder, for errors.
        fields: Arrays and settings by the file's names.
        keys: Our name -> the file's name. Other arrays keep theirs.

    Raises:
        DatasetError: The file has no array of such a name.
    """
    renamed = dict(fields)
    for ours, theirs in (keys or {}).items():
        if theirs not in fields:
            close = difflib.get_close_matches(theirs, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there is: {', '.join(fields)}"
            raise DatasetError(f"{path}: keys: {ours}: expected the name of an array, found {theirs:.80}; {hint}")
        renamed.pop(theirs, None)
    return renamed | {ours: fields[theirs] for ours, theirs in (keys or {}).items()}


def split_dones(
    path: Path, fields: Mapping[str, Any], max_episode_steps: int | None, env_id: str | None = None
) -> dict[str, Any]:
    """Replaces the array dones by terminations and truncations.

    An episode that ends after exactly the time limit was cut by it; one that ends earlier terminated. The last row
    ends the recording, which cuts its episode unless it is done.

    Args:
        path: Path of the file or folder, for errors.
        fields: Arrays and settings by our names.
        max_episode_steps: Steps after which the environment cuts an episode, 0 for never; None for the limit that
            the environment is registered with.
        env_id: Gymnasium id of the environment; None for the file's.

    Raises:
        DatasetError: The limit is unknown, negative, or shorter than an episode, or there are no dones to split.
    """
    splits = "terminations" not in fields
    if max_episode_steps is not None and (max_episode_steps < 0 or not splits):
        found = "terminations and truncations, which say it already" if not splits else max_episode_steps
        raise DatasetError(
            f"{path}: max_episode_steps: expected a limit that splits dones, found {found}; leave it out"
        )
    if not splits:
        return dict(fields)
    dones = check_flags(DONES, fields[DONES], path.stem).astype(bool)
    limit = _registered_limit(env_id or fields.get("env_id")) if max_episode_steps is None else max_episode_steps
    if limit is None:
        raise DatasetError(
            f"{path}: dones: does one also mark an episode that only ran out of time? A value follows a time limit, "
            "and none a termination. If so, give the environment's limit as max_episode_steps (or env_id); if every "
            "done ends the task, give max_episode_steps: 0"
        )
    ends = np.unique(np.append(np.flatnonzero(dones), len(dones) - 1))
    lengths = np.diff(ends, prepend=-1)
    if limit and lengths.max() > limit:
        at = int(ends[lengths.argmax()])
        raise DatasetError(
            f"{path}: dones: expected one at least every {limit} rows, the time limit, found {lengths.max()} rows up "
            f"to index {at}; give the limit that the data were recorded with as max_episode_steps"
        )
    truncations: NDArray[np.bool_] = np.zeros_like(dones)
    truncations[ends] = (lengths == limit) | ~dones[ends]
    split = {name: value for name, value in fields.items() if name != DONES}
    return split | {"terminations": dones & ~truncations, "truncations": truncations}


def _registered_limit(env_id: Any) -> int | None:
    import gymnasium

    text = str(env_id.item() if isinstance(env_id, np.ndarray) and env_id.ndim == 0 else env_id)
    spec = gymnasium.registry.get(text)
    return None if spec is None else spec.max_episode_steps
