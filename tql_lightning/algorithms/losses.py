"""The losses of TQL as pure functions: tensors and noise in, a scalar out (sections 3 to 5 of docs/algorithm.md)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def td_target(
    rewards: Tensor,
    masks: Tensor,
    next_values: Tensor,
    discount: float,
    aggregation: Literal["mean", "min"],
) -> Tensor:
    """TD target y = r + discount * mask * aggregate_k Q_k(s', a'), section 4.

    Args:
        rewards: (B,).
        masks: (B,), 0 only where the MDP terminated.
        next_values: Values of the target critic's heads at (s', a'), (B, E).
        discount: gamma.
        aggregation: Aggregation over the heads.

    Returns:
        (B,) without gradient.
    """
    next_value = next_values.mean(dim=-1) if aggregation == "mean" else next_values.amin(dim=-1)
    return (rewards + discount * masks * next_value).detach()


def entropy_loss(attention_entropy: Tensor, entropy_weight: Tensor) -> Tensor:
    """Mean over (L, 2) of -sg(clip alpha) * H, section 3; its gradient reaches the critic only."""
    return -(entropy_weight.detach() * attention_entropy).mean()


def temperature_loss(attention_entropy: Tensor, temperature: Tensor, target_entropy: Tensor) -> Tensor:
    """Mean over (L, 2) of alpha * (sg(H) - target), section 3; its gradient reaches alpha only."""
    return (temperature * (attention_entropy.detach() - target_entropy)).mean()


def flow_interpolation(x0: Tensor, actions: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t x_1, section 5; x_0 and actions (B, n_a), t (B, 1)."""
    return (1.0 - t) * x0 + t * actions


def behaviour_flow_loss(velocity: Tensor, x0: Tensor, actions: Tensor) -> Tensor:
    """Mean of (v(s, x_t, t) - (x_1 - x_0))^2, section 5; all (B, n_a)."""
    return (velocity - (actions - x0)).square().mean()


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of (mu(s, z) - sg flow(s, z))^2, section 5: unclipped student, clipped teacher, (B, n_a)."""
    return (student - teacher.detach()).square().mean()


def q_scale(values: Tensor) -> Tensor:
    """Mean over the batch of |mean of the heads|, the divisor of a normalised Q loss, without gradient (section 5).

    Args:
        values: Q_k(s, clip mu(s, z)), (B, E).
    """
    return values.detach().mean(dim=-1).abs().mean()


def q_loss(values: Tensor, scale: Tensor | None = None) -> Tensor:
    """-mean over the batch of the mean of the online heads at the policy's action, section 5.

    Args:
        values: Q_k(s, clip mu(s, z)), (B, E); the heads are averaged whatever the TD target's aggregation.
        scale: Divisor, the `q_scale` of the whole batch; None for 1.
    """
    loss = -values.mean(dim=-1).mean()
    return loss if scale is None else loss / scale.detach()


def expectile_loss(values: Tensor, target: Tensor, expectile: float) -> Tensor:
    """Mean over the batch of w (target - V(s))^2, w the expectile where target >= V and 1 - expectile elsewhere (IQL).

    Args:
        values: V(s), (B,).
        target: Values whose expectile V estimates, (B,); gradients do not reach them.
        expectile: kappa, between 0 and 1.
    """
    difference = target.detach() - values
    weight = torch.where(difference >= 0.0, expectile, 1.0 - expectile)
    return (weight * difference.square()).mean()


def advantage_weights(advantage: Tensor, inverse_temperature: float, largest: float = 100.0) -> Tensor:
    """Weights of advantage-weighted regression, min(exp(inverse_temperature * A), largest); (B,) -> (B,)."""
    return (inverse_temperature * advantage.detach()).exp().clamp(max=largest)


def cloning_penalty(actions: Tensor, data_actions: Tensor) -> Tensor:
    """Sum over dimensions of the squared distance to the data's actions (ReBRAC); (B, n_a) twice -> (B,)."""
    return (actions - data_actions).square().sum(dim=-1)


def normalised_q_loss(value: Tensor, scale: Tensor) -> Tensor:
    """-mean over the batch of Q(s, pi(s)), divided by the detached mean |Q| of the whole batch.

    Args:
        value: Aggregate of the online critic's heads, (B,).
        scale: Mean of |value| over the whole batch, a scalar.
    """
    return -value.mean() / scale.detach()
