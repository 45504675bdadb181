"""The behaviour flow's loss and noise, shared by the algorithms that clone with a flow."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tql_lightning.algorithms import losses
from tql_lightning.batch import Draw
from tql_lightning.nn.policy import BehaviourFlow


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
