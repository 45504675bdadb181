"""A policy that acts by the centre of its actions under observation noise; see `tql_lightning.evaluation.smoothing`."""

from __future__ import annotations

import torch
from torch import Tensor

from tql_lightning.evaluation.smoothing import Function, median_center
from tql_lightning.nn.policy import Actor

CANDIDATES = 30  # that the centre is chosen from, as the paper does for outputs of many dimensions
SAMPLES = 4_000


def zero_noise(actor: Actor) -> Function:
    """An actor with its own noise held at 0, observations (N, n_s) -> actions (N, n_a)."""
    return lambda observations: actor.act(observations, observations.new_zeros(len(observations), *actor.noise_shape))


def smoothed_actor(actor: Actor, observation_dim: int, sigma: float, samples: int = SAMPLES) -> Actor:
    """The centre-smoothed form of an actor whose own noise is held at 0.

    Its noise is the observations' instead. It decides without the test that `smooth` makes: where that test would
    abstain, nothing is certified of the decision.

    Args:
        actor: the policy.
        observation_dim: n_s.
        sigma: standard deviation of the noise, in the units of the observations.
        samples: noisy observations of a decision; a centre is the one of 30 further ones whose median distance to
            their actions is the smallest.

    Raises:
        ValueError: ``sigma`` or ``samples`` is out of range.
    """
    if not sigma > 0.0:
        raise ValueError(f"sigma: expected a number above 0, found {sigma}")
    if samples < 1:
        raise ValueError(f"smoothing_samples: expected at least 1, found {samples}")
    function = zero_noise(actor)

    def act(observations: Tensor, noise: Tensor) -> Tensor:
        centers = []
        for observation, perturbation in zip(observations, noise, strict=True):  # each alone bounds the memory
            actions = function(observation + sigma * perturbation)
            index, _ = median_center(actions[:CANDIDATES], actions[CANDIDATES:])
            centers.append(actions[index])
        return torch.stack(centers)

    return Actor((CANDIDATES + samples, observation_dim), act, actor.action_chunk)
