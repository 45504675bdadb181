"""Losses and noise of the behaviour flow and of what is distilled from it, shared by the algorithms with a flow."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tql_lightning.algorithms import losses
from tql_lightning.batch import Draw
from tql_lightning.nn.policy import BehaviourFlow, FlowPolicy
from tql_lightning.training.sharding import call_with_frozen_parameters


class FlowNoise(NamedTuple):
    """Random numbers of one update of a behaviour flow.

    Attributes:
        flow_x0: x_0 ~ N(0, I), start of the flow, (..., B, n_a).
        flow_t: t ~ U[0, 1), time of the flow, (..., B, 1).
    """

    flow_x0: Tensor
    flow_t: Tensor


def flow_draws(action_dim: int) -> dict[str, Draw]:
    """Returns the draws of `FlowNoise`."""
    return {"flow_x0": Draw("normal", (action_dim,)), "flow_t": Draw("uniform", (1,))}


def flow_matching_loss(policy: BehaviourFlow, observations: Tensor, actions: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Mean over (B, n_a) of (v(s, x_t, t) - (a - x_0))^2; observations (B, n_s), actions and x0 (B, n_a), t (B, 1)."""
    velocity = policy.velocity(observations, losses.flow_interpolation(x0, actions, t), t)
    return losses.behaviour_flow_loss(velocity, x0, actions)


def distill(policy: FlowPolicy, observations: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the one-step policy's actions and their distance from the behaviour flow, which is held fixed.

    ``policy.distillation`` says which distance: "euler" (FQL) is the mean of (mu(s, z) - flow(s, z))^2 with the flow's
    Euler steps from the same noise; "anchor" (FAN, arXiv 2605.01663) is the mean of (mu(s, z) - z - v(s, x_t, t))^2
    with x_t = (1 - t) z + t mu(s, z), one evaluation of v.

    Args:
        policy: Behaviour flow and one-step policy.
        observations: (B, n_s).
        noise: z, (B, n_a).
        t: Time between 0 and 1, independent of z, (B, 1); unused by "euler".

    Returns:
        mu(s, z), not clipped, (B, n_a), and the distance, a scalar.
    """
    if policy.distillation == "euler":
        with torch.no_grad():
            teacher = policy.flow_actions(observations, noise)
        student = policy.one_step_actions(observations, noise)
        return student, losses.distillation_loss(student, teacher)
    student = policy.one_step_actions(observations, noise)
    inputs = policy.velocity_inputs(observations, losses.flow_interpolation(noise, student, t), t)
    velocity = call_with_frozen_parameters(policy.behaviour_flow, inputs)
    return student, losses.behaviour_flow_loss(velocity, noise, student)
