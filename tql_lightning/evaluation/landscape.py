"""Q as a function of the action: slope, roughness, and values on a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from tql_lightning.data.counter_random import normal, uniform
from tql_lightning.nn.critic import Critic

STEP = 0.1  # length of the step in action space, whose coordinates lie in [-1, 1]


@torch.no_grad()
def smoothness(critic: Critic, observations: Tensor, actions: Tensor) -> tuple[float, float]:
    """Slope and roughness of Q around actions, in units of the standard deviation S of Q(s, a) over the pairs.

    With a random direction d of length `STEP`, slope is the mean of |Q(s, a + d) - Q(s, a - d)| / (2 S), and roughness
    the mean of |Q(s, a + d) + Q(s, a - d) - 2 Q(s, a)| / S. Actions are first clamped to leave room for the step. Every
    call uses the same directions.

    Args:
        critic: Critic; Q is the mean over its heads.
        observations: Observations (P, n_s) with P at least 2.
        actions: Actions (P, n_a).
    """
    actions = actions.clamp(STEP - 1.0, 1.0 - STEP)
    number, size = actions.shape
    drawn = uniform(0, torch.zeros(1, dtype=torch.long), torch.arange(number), 2 * size)
    direction = normal(drawn[0])[:, :size].to(actions)
    step = STEP * direction / direction.norm(dim=-1, keepdim=True)
    here, up, down = (mean_q(critic, observations, at) for at in (actions, actions + step, actions - step))
    slope = (up - down).abs().mean() / (2.0 * here.std())
    roughness = (up + down - 2.0 * here).abs().mean() / here.std()
    return float(slope), float(roughness)


def steepest_dimensions(critic: Critic, observations: Tensor, actions: Tensor) -> tuple[int, ...]:
    """The two action dimensions with the largest mean |dQ/da|, in ascending order; one if there is only one."""
    with torch.enable_grad():
        moved = actions.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(mean_q(critic, observations, moved).sum(), moved)
    order = gradient.abs().mean(dim=0).argsort(descending=True)
    return tuple(sorted(order[:2].tolist()))


@torch.no_grad()
def q_around(
    critic: Critic, observations: Tensor, actions: Tensor, dimensions: tuple[int, ...], offsets: Tensor
) -> Tensor:
    """Q on a grid around each action, along one or two action dimensions.

    Args:
        critic: Critic; Q is the mean over its heads.
        observations: Observations (P, n_s).
        actions: Actions (P, n_a).
        dimensions: One or two action dimensions.
        offsets: Offsets (m,) along each dimension.

    Returns:
        (P, m) or (P, m, m), indexed by the first dimension's offset first; NaN for actions outside [-1, 1].
    """
    grid = torch.cartesian_prod(*[offsets] * len(dimensions)).reshape(-1, len(dimensions))
    moved = actions.unsqueeze(1).repeat(1, len(grid), 1)
    moved[:, :, list(dimensions)] += grid.to(moved)
    repeated = observations.unsqueeze(1).expand(-1, len(grid), -1)
    values = torch.cat([mean_q(critic, *pair) for pair in zip(repeated, moved, strict=True)])
    values[(moved.abs() > 1.0).any(dim=-1).flatten()] = torch.nan
    return values.view(len(actions), *[len(offsets)] * len(dimensions))


def mean_q(critic: Critic, observations: Tensor, actions: Tensor) -> Tensor:
    """Mean Q over the critic's heads, (P,) float32."""
    values: Tensor = critic(observations, actions).values.float()
    return values.mean(dim=-1)
