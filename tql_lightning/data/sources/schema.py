"""The project's own schema: the arrays and settings of a dataset in an npz file or a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tql_lightning.data.checks import Allocate, check_fraction, in_memory
from tql_lightning.data.environment import check_env_id
from tql_lightning.data.sources.foreign_keys import DONES, rename, split_dones, suggest_keys
from tql_lightning.data.transitions import DatasetError, TransitionDataset

REQUIRED = ("observations", "actions", "rewards", "terminations", "truncations")
OPTIONAL = ("next_observations", "masks")
SETTINGS = ("env_id", "action_low", "action_high", "actions_scaled", "reference_scores")
ENDS = {"terminations": "true where the task ended", "truncations": "true where a time limit cut an episode"}
Keys = Mapping[str, str]  # our name of an array -> the file's


def dataset_from(
    path: Path,
    fields: Mapping[str, Any],
    allocate: Allocate = in_memory,
    keys: Keys | None = None,
    max_episode_steps: int | None = None,
    env_id: str | None = None,
) -> TransitionDataset:
    """Checks the contents of a file or folder and builds a dataset.

    Args:
        path: the file or folder, for the dataset's name and for errors.
        fields: arrays and settings by name.
        allocate: see `TransitionDataset.from_arrays`.
        keys: Our name -> the file's name, of arrays under other names. Then arrays of unknown names are left out.
        max_episode_steps: Time limit that tells truncations from terminations among ``dones``; see `split_dones`.
        env_id: Gymnasium id of the environment; None for the file's.

    Raises:
        DatasetError: one is missing, unknown or wrong.
    """
    fields = rename(path, fields, keys)
    _check_names(path, fields, keys)
    fields = split_dones(path, fields, max_episode_steps, env_id)
    fields = {name: value for name, value in fields.items() if name in REQUIRED + OPTIONAL + SETTINGS}
    plain = dict(fields)
    for key, kind, expected in (("env_id", str, "a string"), ("actions_scaled", bool, "true or false")):
        if key in plain:
            given = plain[key]
            plain[key] = given.item() if isinstance(given, np.ndarray) and given.ndim == 0 else given
            if not isinstance(plain[key], kind):
                found = f"shape {given.shape}" if isinstance(plain[key], np.ndarray) else repr(plain[key])
                raise DatasetError(f"{path}: {key}: expected {expected}, found {found:.80}; write it so")
    try:
        check_env_id(plain.get("env_id"))
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from error
    dataset = TransitionDataset.from_arrays(**plain, name=path.stem, allocate=allocate)
    return dataset.evaluated_in(env_id)


def _check_names(path: Path, fields: Mapping[str, Any], keys: Keys | None) -> None:
    """Rejects missing and unknown arrays; the message has the mapping of those under other names."""
    dones = DONES in fields and not ENDS.keys() & fields.keys()
    missing = [key for key in REQUIRED if key not in fields and not (dones and key in ENDS)]
    known = {*REQUIRED, *OPTIONAL, *SETTINGS} | ({DONES} if dones else set())
    unknown = [key for key in fields if key not in known]
    suggested = suggest_keys([*missing, *(name for name in OPTIONAL if name not in fields)], unknown)
    absent = [key for key in ENDS if key in missing and key not in suggested]
    if len(absent) == len(ENDS):
        suggested |= suggest_keys([DONES], unknown)
    if not missing and not (suggested if keys else unknown):
        return
    hint = f"expected arrays {', '.join(REQUIRED)}, and optionally {', '.join(OPTIONAL + SETTINGS)}"
    if {"terminals", "qpos"} <= set(unknown):
        hint = "one of OGBench's files is loaded by its dataset's name"
    elif suggested:
        mapping = ", ".join(f"{ours}: {theirs}" for ours, theirs in ({**(keys or {})} | suggested).items())
        hint = (
            f"did you mean keys='{{{mapping}}}' (--data.dataset.keys of tql fit, --keys of tql data)? It leaves out "
            "arrays of other names"
        )
    if len(absent) == 1:
        hint += f"; add {absent[0]}: {ENDS[absent[0]]}, and false everywhere if none did"
    raise DatasetError(
        f"{path}: missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}; {hint}"
    )


def fields_of(dataset: TransitionDataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and settings from which `dataset_from` builds the same transitions."""
    terminations = dataset.episode_ends & (dataset.masks == 0)
    arrays = {
        "observations": dataset.observations,
        "actions": dataset.actions,
        "rewards": dataset.rewards,
        "terminations": terminations,
        "truncations": dataset.episode_ends & ~terminations,
        "next_observations": dataset.next_observations,
        "masks": dataset.masks,
    }
    settings = {
        "env_id": dataset.env_id,
        "action_low": dataset.action_low.tolist(),
        "action_high": dataset.action_high.tolist(),
        "actions_scaled": True,
        "reference_scores": dataset.reference_scores,
    }
    return arrays, {key: value for key, value in settings.items() if value is not None}


def with_held_out(
    load: Callable[[Path], TransitionDataset], path: Path, validation_fraction: float
) -> TransitionDataset:
    """Loads a dataset with its validation part: ``NAME-val`` beside it, or a share of its last episodes.

    Args:
        load: loads what lies at a path.
        path: Path of the dataset.
        validation_fraction: share of the episodes, the last ones, to hold out.

    Raises:
        DatasetError: an impossible share, both ways at once, or held-out transitions of other sizes.
    """
    check_fraction(validation_fraction)
    dataset = load(path)
    beside = validation_path(path)
    if not beside.exists():
        return dataset.hold_out(validation_fraction)
    if validation_fraction:
        raise DatasetError(
            f"validation_fraction: expected 0 where {beside} holds transitions out already, found "
            f"{validation_fraction}; leave it out, or move that away"
        )
    validation = load(beside)
    found, expected = (
        (part.observation_dim, part.action_dim, part.action_low.tolist(), part.action_high.tolist())
        for part in (validation, dataset)
    )
    if found != expected:
        raise DatasetError(
            f"{beside}: expected sizes and action bounds {expected} as in {path}, found {found}; move it away, or make "
            "it again"
        )
    return replace(dataset, validation=validation)


def validation_path(path: Path) -> Path:
    """Path of the validation part of a dataset's file or folder: ``NAME-val`` beside it."""
    return path.with_name(f"{path.stem}-val{path.suffix}")
