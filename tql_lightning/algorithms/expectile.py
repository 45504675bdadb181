"""Losses of V and Q in IQL (arXiv 2110.06169) and IFQL (arXiv 2502.02538), which need no actions of the policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tql_lightning.algorithms import losses
from tql_lightning.algorithms.critics import CriticFit, fit_critic
from tql_lightning.batch import Batch
from tql_lightning.nn.critic import Critic, CriticOutput
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.temperature import EntropyControl
from tql_lightning.nn.value_loss import ValueLoss
from tql_lightning.nn.value_network import ValueNetwork
from tql_lightning.training.update import Inputs


def fit_value(
    value: ValueNetwork, target_critic: Critic, batch: Batch, expectile: float
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Computes the mean of w (min_k Qbar_k(s, a) - V(s))^2, w = expectile above V and 1 - expectile below.

    Args:
        value: V.
        target_critic: Qbar.
        batch: Minibatch, (B, ...).
        expectile: kappa: 0.5 is the mean; towards 1 V approaches the value of the dataset's best action.

    Returns:
        The loss, V(s) (B,) and scalars to log.
    """
    with torch.no_grad():
        target = target_critic(batch.observations, batch.actions).at_least_float32().values.amin(dim=-1)
    values = at_least_float32(value(batch.observations))
    loss = losses.expectile_loss(values, target, expectile)
    metrics = {"value_loss": loss, "v_mean": values.mean(), "v_min": values.min(), "v_max": values.max()}
    return loss, values, metrics


@torch.no_grad()
def value_target(value: ValueNetwork, batch: Batch, discount: float) -> Tensor:
    """Computes y = r + discount * mask * V(s'), (B,)."""
    target: Tensor = batch.rewards + discount * batch.masks * at_least_float32(value(batch.next_observations))
    return target


def fit_critic_to_value(
    output: CriticOutput,
    target: Tensor,
    value_loss: ValueLoss,
    temperature: EntropyControl | None,
    inputs: Inputs,
    whole_mean: Callable[[Tensor], Tensor],
) -> CriticFit:
    """Computes the batch mean of the SUM over heads of (Q_k(s, a) - y)^2.

    Args:
        output: Output of Q at (s, a), with entropy if there are temperatures.
        target: Result of `value_target`.
        value_loss: TD loss, a mean over heads.
        temperature: See `fit_critic`, as for the others.
        inputs: Result of `entropy_inputs`.
        whole_mean: See `Algorithm.losses`.
    """

    def summed(values: Tensor, logits: Tensor | None, target: Tensor) -> Tensor:
        loss: Tensor = value_loss(values, logits, target)
        return loss * values.shape[-1]

    fit = fit_critic(output, target, summed, temperature, inputs, whole_mean)
    fit.metrics.update(target_q_mean=target.mean(), target_q_min=target.min(), target_q_max=target.max())
    return fit
