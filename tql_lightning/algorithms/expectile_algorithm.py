"""Losses of V and Q in IQL (arXiv 2110.06169) and IFQL (arXiv 2502.02538), which need no actions of the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tql_lightning.algorithms import losses
from tql_lightning.algorithms.critic_algorithm import CriticAlgorithm
from tql_lightning.algorithms.critics import CriticFit
from tql_lightning.batch import Batch
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.value_network import ValueNetwork
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import ParameterGroup
from tql_lightning.training.update import Inputs


class ExpectileAlgorithm(CriticAlgorithm):
    """Learns V(s) as an expectile of the target critic at the dataset's actions, and Q(s, a) from V(s').

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI).
        value: Makes V from (observation_dim).
        expectile: kappa of V: 0.5 is the mean; towards 1 V approaches the value of the dataset's best action.
        settings: Settings of `CriticAlgorithm`.

    Raises:
        ValueError: A setting is out of its range; the message names it.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        value: Callable[[int], ValueNetwork],
        expectile: float,
        **settings: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, **settings)
        require("expectile", 0.0 < expectile < 1.0, "above 0 and below 1", expectile)
        self.value = value(observation_dim)
        self.expectile = expectile

    def value_groups(self) -> list[ParameterGroup]:
        """Returns the parameter groups of critic, temperatures and V."""
        return [*self.critic_groups(), ParameterGroup("value", self.value)]

    def value_loss(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Computes the mean of w (min_k Qbar_k(s, a) - V(s))^2, with w = kappa above V and 1 - kappa below.

        Returns:
            The loss, V(s) (B,) and scalars to log.
        """
        target = self.target_values(batch.observations, batch.actions).amin(dim=-1)
        values = at_least_float32(self.value(batch.observations))
        loss = losses.expectile_loss(values, target, self.expectile)
        metrics = {"value_loss": loss, "v_mean": values.mean(), "v_min": values.min(), "v_max": values.max()}
        return loss, values, metrics

    def critic_loss(
        self, batch: Batch, inputs: Inputs, with_metrics: bool, whole_mean: Callable[[Tensor], Tensor]
    ) -> CriticFit:
        """Computes the batch mean of the SUM over heads of (Q_k(s, a) - y)^2, y = r + discount * mask * V(s')."""
        with torch.no_grad():
            target = batch.rewards + self.discount * batch.masks * at_least_float32(self.value(batch.next_observations))
        fit = self.fit_critic(
            batch.observations, batch.actions, target, inputs, with_metrics, whole_mean, sum_over_heads=True
        )
        fit.metrics.update(target_q_mean=target.mean(), target_q_min=target.min(), target_q_max=target.max())
        return fit
