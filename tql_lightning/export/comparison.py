"""An exported policy compared with its checkpoint: the same actions to rounding, or an error."""

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

TOLERANCE = 1e-5  # of an action, per unit of the largest bound where that is above 1
BATCH_SIZES = (1, 256)
OBSERVATIONS = 1_000
ROWS_AT_ONCE = 256  # of the checkpoint's networks: what they compute for more does not fit into a core's cache


class ExportError(ValueError):
    """A policy cannot be exported, or what was written does not act as the checkpoint; the message says why."""


def compare(
    actor: Actor,
    bounds: tuple[list[float], list[float]],
    policy: Policy,
    raw: Mapping[str, Any],
    dataset: str | None = None,
) -> dict[str, Any]:
    """Compares every action on 1,000 observations, with noise and without, in batches of 1 and of 256.

    Args:
        actor: How the checkpoint's model acts.
        bounds: Lower and upper bounds of the actions, (n_a,) each.
        policy: The exported folder, loaded.
        raw: Contents of the checkpoint.
        dataset: See `sample_observations`.

    Returns:
        What metadata.json says of the comparison.

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
    """What the exported policy does, (rows, ...); without noise deterministically. Cores share the batches."""

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
    """The checkpoint's actions in the environment's units, (rows, A, n_a); NaN where there are fewer than A.

    Where the actor chooses, they are all candidates whose score equals the best but for rounding.
    """
    parts = []
    at_once = max(1, ROWS_AT_ONCE // math.prod(noise.shape[1:-1]))
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
