"""Two algorithms as users write them in their own folder: a TQL with one more loss, and an IQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tql_lightning import TQL, Actor, Batch, Critic, MLPCritic
from tql_lightning.algorithms.critics import frozen_values, move_target
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.distributed import identity
from tql_lightning.training.execution import Execution
from tql_lightning.training.optimisation import Optimisation, ParameterGroup
from tql_lightning.training.update import Inputs, Losses


class MyTQL(TQL):
    """TQL with a CQL penalty: values of the policy's actions fall, values of the dataset's actions rise.

    Args:
        cql_weight: Weight of the penalty.
        settings: Settings of TQL.
    """

    def __init__(self, observation_dim: int, action_dim: int, cql_weight: float = 1.0, **settings: Any) -> None:
        super().__init__(observation_dim, action_dim, **settings)
        self.cql_weight = cql_weight
        self.save_hyperparameters()

    def losses(
        self,
        batch: Batch,
        noise: Any,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """TQL's losses and the penalty."""
        total, metrics, diagnostics = super().losses(batch, noise, inputs, with_metrics, whole_mean)
        with torch.no_grad():
            actions = self.one_step_actions(batch.observations, noise.distillation)
        difference = self.critic(batch.observations, actions).values - self.critic(*batch[:2]).values
        penalty = difference.mean()
        metrics = metrics | ({"cql_penalty": penalty.detach()} if with_metrics else {})
        return Losses(total + self.cql_weight * penalty, metrics, diagnostics)


class IQL(Algorithm):
    """Implicit Q-Learning (arXiv 2110.06169) with a deterministic policy by advantage-weighted regression.

    Args:
        observation_dim: n_s.
        action_dim: n_a.
        critic: Makes the critic from (observation_dim, action_dim).
        hidden_dim: Width of value network and policy.
        discount: gamma.
        expectile: Expectile of the value network.
        temperature: Inverse temperature of the advantage weights.
        tau: Share of the critic that moves into the target critic at each update.
        optimisation: Learning rates, schedule, weight decay and clipping.
        execution: Compilation and precision.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        critic: Callable[[int, int], Critic] = MLPCritic,
        hidden_dim: int = 32,
        discount: float = 0.99,
        expectile: float = 0.7,
        temperature: float = 3.0,
        tau: float = 0.005,
        optimisation: Optimisation = Optimisation(),  # noqa: B008
        execution: Execution = Execution(),  # noqa: B008
    ) -> None:
        super().__init__(observation_dim, action_dim, optimisation=optimisation, execution=execution)
        self.save_hyperparameters()
        self.critic, self.target_critic = (critic(observation_dim, action_dim) for _ in range(2))
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        self.value = nn.Sequential(nn.Linear(observation_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, 1))
        self.policy = nn.Sequential(
            nn.Linear(observation_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, action_dim), nn.Tanh()
        )
        self.discount, self.expectile, self.temperature, self.tau = discount, expectile, temperature, tau

    def parameter_groups(self) -> list[ParameterGroup]:
        """Critic, value network and policy."""
        return [ParameterGroup(name, getattr(self, name)) for name in ("critic", "value", "policy")]

    def losses(
        self,
        batch: Batch,
        noise: Any,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """TD loss towards V(s'), expectile loss of V(s) towards Q(s, a), weighted regression onto the data."""
        q = frozen_values(self.target_critic, batch.observations, batch.actions).min(-1).values.detach()
        advantage = q - self.value(batch.observations).squeeze(-1)
        value_loss = ((self.expectile - (advantage < 0).float()).abs() * advantage.square()).mean()
        with torch.no_grad():
            target = batch.rewards + self.discount * batch.masks * self.value(batch.next_observations).squeeze(-1)
        critic_loss = (self.critic(batch.observations, batch.actions).values - target[:, None]).square().mean()
        weight = (self.temperature * advantage.detach()).exp().clamp(max=100.0)
        actor_loss = (weight * (self.policy(batch.observations) - batch.actions).square().sum(-1)).mean()
        parts = {"value_loss": value_loss, "critic_loss": critic_loss, "actor_loss": actor_loss}
        total = value_loss + critic_loss + actor_loss
        return Losses(total, {name: loss.detach() for name, loss in parts.items()} if with_metrics else {}, {})

    def before_step(self, inputs: Inputs) -> None:
        """Moves the target critic."""
        move_target(self.target_critic, self.critic, self.tau)

    def actor(self, extraction: str | None = None) -> Actor:
        """The policy, which needs no noise."""
        return Actor((0,), lambda observations, _: self.policy(observations))
