"""Compares an exported policy with its checkpoint: equal actions up to rounding, or an error."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from tql_lightning.export.observations import sample_observations
from tql_lightning.export.policy import Policy
from tql_lightning.nn.policy import Actor
from tql_lightning.trust.text import FileError

TOLERANCE = 1e-5  # largest difference of actions, in units of the larger of 1 and the largest bound
BATCH_SIZES = (1, 256)
OBSERVATIONS = 1_000
MAX_ROWS = 256  # batch of the checkpoint's networks; the activations of more do not fit into a core's cache


class ExportError(FileError):
    """A policy cannot be exported, or the exported one acts differently; the message says why."""


def compare(
    actor: Actor,
    bounds: tuple[list[float], list[float]],
    policy: Policy,
    raw: Mapping[str, Any],
    dataset: str | None = None,
) -> dict[str, Any]:
    """Compares actions on 1,000 observations, with and without noise, in batches of 1 and of 256.

    Args:
        actor: Actor of the checkpoint's model.
        bounds: Lower and upper bounds of the actions, (n_a,) each.
        policy: Policy loaded from the exported folder.
        raw: Content of the checkpoint; see `sample_observations`, also for ``dataset``.
        dataset: Dataset of the observations.

    Returns:
        The entry ``verification`` of metadata.json.

    Raises:
        ExportError: an action differs by more than the tolerance.
        DatasetError: see `sample_observations`.
    """
    size = int(policy.metadata["observation_dim"])
    observations, source = sample_observations(raw, OBSERVATIONS, size, dataset)
    shape = (OBSERVATIONS, *policy.noise_shape)
    drawn = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    unit = max(1.0, *(abs(bound) for side in bounds for bound in side))
    largest = 0.0
    for deterministic, given in ((False, drawn), (True, np.zeros(shape, dtype=np.float32))):
        expected = _acceptable_actions(actor, bounds, observations, given)
        for batch_size in BATCH_SIZES:
            found = _act_in_batches(policy, observations, None if deterministic else given, batch_size)
            differences = np.abs(expected - found.reshape(OBSERVATIONS, 1, -1)).max(axis=-1)
            difference = float(np.nanmin(differences, axis=1).max()) / unit
            largest = max(largest, difference)
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"the exported policy {'(deterministic) ' if deterministic else ''}differs from the "
                    f"checkpoint's by {difference:.2g} at batch {batch_size} (expected at most {TOLERANCE:g}, "
                    f"observations: {source}); nothing was written"
                )
    return {
        "observations": source,
        "rows": OBSERVATIONS,
        "batch_sizes": list(BATCH_SIZES),
        "tolerance": TOLERANCE,
        "unit": unit,
        "largest_difference": largest,
    }


def _act_in_batches(
    policy: Policy, observations: NDArray[np.float32], noise: NDArray[np.float32] | None, batch_size: int
) -> NDArray[np.float32]:
    """Actions (rows, ...) of the exported policy, deterministic without noise. All cores share the batches."""

    def act(start: int) -> NDArray[np.float32]:
        rows = slice(start, start + batch_size)
        drawn = None if noise is None else noise[rows]
        actions: NDArray[np.float32] = policy.act(observations[rows], noise=drawn, deterministic=noise is None)
        return actions

    starts = range(0, len(observations), batch_size)
    bar = partial(tqdm, total=len(starts), desc=f"comparing at batch {batch_size}", delay=5, leave=False, disable=None)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as cores:
        return np.concatenate(list(bar(cores.map(act, starts))))


@torch.inference_mode()
def _acceptable_actions(
    actor: Actor,
    bounds: tuple[list[float], list[float]],
    observations: NDArray[np.float32],
    noise: NDArray[np.float32],
) -> NDArray[np.float64]:
    """The checkpoint's actions in the environment's units, (rows, S, n_a).

    Candidates whose score equals the best up to rounding are all acceptable; the others are NaN.
    """
    parts = []
    at_once = max(1, MAX_ROWS // math.prod(noise.shape[1:-1]))
    for start in range(0, len(observations), at_once):
        given = torch.from_numpy(observations[start : start + at_once])
        drawn = torch.from_numpy(noise[start : start + at_once])
        if actor.candidates is None:
            actions = actor.act(given, drawn).unsqueeze(1)
        else:
            actions, scores = actor.candidates(given, drawn)
            best = scores.amax(dim=1, keepdim=True)
            worse = scores < best - TOLERANCE * best.abs().clamp(min=1.0)
            actions = actions.masked_fill(worse.unsqueeze(-1), torch.nan)
        parts.append(actions.double())
    low, high = (torch.tensor(bound, dtype=torch.float64) for bound in bounds)
    expected: NDArray[np.float64] = (low + (torch.cat(parts) + 1.0) * (high - low) / 2.0).numpy()
    return expected
