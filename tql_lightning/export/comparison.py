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

from tql_lightning.algorithms.tql import TQL
from tql_lightning.export.observations import sample_observations
from tql_lightning.export.policy import Policy
from tql_lightning.nn.policy import ScaledPolicy
from tql_lightning.trust.text import FileError

TOLERANCE = 1e-5  # of an action, per unit of the largest bound where that is above 1
BATCH_SIZES = (1, 256)
OBSERVATIONS = 1_000
ROWS_AT_ONCE = 256  # of the checkpoint's networks: what they compute for more does not fit into a core's cache


class ExportError(FileError):
    """A policy cannot be exported, or what was written does not act as the checkpoint; the message says why."""


def compare(
    model: TQL, network: ScaledPolicy, policy: Policy, raw: Mapping[str, Any], dataset: str | None = None
) -> dict[str, Any]:
    """Compares every action on 1,000 observations, with noise and without, in batches of 1 and of 256.

    Args:
        model: of the checkpoint.
        network: of it, that was exported.
        policy: the exported folder, loaded.
        raw: what the checkpoint holds.
        dataset: see `sample_observations`.

    Returns:
        What metadata.json says of the comparison.

    Raises:
        ExportError: an action differs by more than the tolerance.
        DatasetError: see `sample_observations`.
    """
    observations, source = sample_observations(raw, OBSERVATIONS, model.observation_dim, dataset)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((OBSERVATIONS, *policy.noise_shape), dtype=np.float32)
    unit = max(1.0, float(network.action_low.abs().max()), float(network.action_high.abs().max()))
    largest = 0.0
    for given, deterministic in ((noise, False), (np.zeros_like(noise), True)):
        expected = _acceptable_actions(model, network, observations, given)
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
    model: TQL, network: ScaledPolicy, observations: NDArray[np.float32], noise: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The checkpoint's actions in the environment's units, (rows, A, n_a); NaN where there are fewer than A.

    A is 1, but for "implicit": of the candidates it chooses from, all that are worth the same as the best to rounding.
    With zero noise they are all one.
    """
    parts = []
    at_once = max(1, ROWS_AT_ONCE // math.prod(noise.shape[1:-1]))
    for start in range(0, len(observations), at_once):
        given = torch.from_numpy(observations[start : start + at_once])
        drawn = torch.from_numpy(noise[start : start + at_once])
        if network.extraction != "implicit":
            actions = model.actor(network.extraction).act(given, drawn).unsqueeze(1)
        elif not drawn.any():
            actions = model.policy.flow_actions(given, drawn[:, 0]).unsqueeze(1)
        else:
            repeated = given.unsqueeze(1).expand(-1, drawn.shape[1], -1)
            candidates = model.policy.flow_actions(repeated, drawn)
            values = model.critic(repeated.flatten(0, 1), candidates.flatten(0, 1)).values.amin(dim=-1)
            values = values.view(candidates.shape[:2])
            best = values.amax(dim=1, keepdim=True)
            worse = values < best - TOLERANCE * best.abs().clamp(min=1.0)
            actions = candidates.masked_fill(worse.unsqueeze(-1), torch.nan)
        parts.append(actions.double())
    low, high = network.action_low.double(), network.action_high.double()
    expected: NDArray[np.float64] = (low + (torch.cat(parts) + 1.0) * (high - low) / 2.0).numpy()
    return expected
