"""Implicit flow Q-learning (IFQL, arXiv 2502.02538): IQL's values, and the best of several behaviour actions."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor

from tql_lightning.algorithms.critics import (
    critic_groups,
    entropy_inputs,
    make_temperature,
    move_target,
    require_target_settings,
)
from tql_lightning.algorithms.expectile import fit_critic_to_value, fit_value, value_target
from tql_lightning.algorithms.flow_matching import FlowNoise, flow_draws, flow_matching_loss
from tql_lightning.batch import Batch, Draw
from tql_lightning.nn.critic import Critic, MLPCritic, make_critic
from tql_lightning.nn.policy import Actor, BehaviourFlow
from tql_lightning.nn.temperature import EntropyControl
from tql_lightning.nn.value_loss import SquaredError, ValueLoss
from tql_lightning.nn.value_network import ValueNetwork
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.distributed import identity
from tql_lightning.training.execution import Execution
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import Optimisation, ParameterGroup
from tql_lightning.training.problem import Problem
from tql_lightning.training.update import Inputs, Losses, collected


class IFQL(Algorithm):
    """Implicit flow Q-learning: the policy is a behaviour flow, and acting takes the best of several of its actions.

    With Qbar the target critic and means over the batch::

        value   mean of w (min_k Qbar_k(s, a) - V(s))^2, w = expectile above V and 1 - expectile below
        critic  mean of the sum over k of (Q_k(s, a) - r - discount * mask * V(s'))^2
        actor   mean of (v(s, x_t, t) - (a - x_0))^2, x_t = (1 - t) x_0 + t a
        act     the one of policy.num_samples flow actions with the largest min_k Q_k(s, a)

    One Adam step uses all losses at the old parameters; then Qbar moves towards Q as it was before the step.

    Deviation: the TD target is logged as ``target_q``, in the release as ``q``.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI).
        critic: Makes the critic from (observation_dim, action_dim).
        value: Makes V from (observation_dim).
        policy: Makes the behaviour flow from (observation_dim, action_dim).
        entropy_control: Makes the attention temperatures of a critic with attention; null for none.
        value_loss: Makes the critic's TD loss from the range of discounted returns.
        problem: Length of a decision and ranges of rewards (taken from the data by the CLI).
        discount: Gamma, by which a reward one environment step later counts less.
        tau: Share of the critic that moves into the target critic at each update.
        expectile: kappa of V.
        optimisation: Learning rates, schedule, weight decay and clipping.
        execution: Compilation, CUDA graphs and precision of matrix products.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Examples:
        >>> model = IFQL(3, 1)
        >>> model.actor().noise_shape, model.actor("behaviour_flow").noise_shape
        ((32, 1), (1,))
    """

    Noise = FlowNoise

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        critic: Callable[[int, int], Critic] = MLPCritic,
        value: Callable[[int], ValueNetwork] = ValueNetwork,
        policy: Callable[[int, int], BehaviourFlow] = BehaviourFlow,
        entropy_control: Callable[[int, int], EntropyControl] | None = None,
        value_loss: Callable[[tuple[float, float] | None], ValueLoss] = SquaredError,
        problem: Problem = Problem(),  # noqa: B008  (never changed)
        discount: float = 0.99,
        tau: float = 0.005,
        expectile: float = 0.9,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
        execution: Execution = Execution(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(observation_dim, action_dim, problem=problem, optimisation=optimisation, execution=execution)
        require_target_settings(discount, tau)
        require("expectile", 0.0 < expectile < 1.0, "above 0 and below 1", expectile)
        self.td_loss = value_loss(problem.return_range(discount))
        self.critic = make_critic(critic, observation_dim, action_dim, self.td_loss)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature = make_temperature(entropy_control, self.critic)
        self.discount, self.tau = discount, tau
        self.expectile, self.value = expectile, value(observation_dim)
        self.policy = policy(observation_dim, action_dim)
        self.save_hyperparameters()

    def noise_draws(self) -> dict[str, Draw]:
        """Returns the draws of `FlowNoise`."""
        return flow_draws(self.action_dim)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns critic, temperatures, V and policy."""
        return [
            *critic_groups(self.critic, self.temperature),
            ParameterGroup("value", self.value),
            ParameterGroup("actor", self.policy),
        ]

    def inputs(self, update: int) -> Inputs:
        """Returns the entropy targets at the update."""
        return entropy_inputs(self.temperature, update)

    def losses(
        self,
        batch: Batch,
        noise: FlowNoise,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """Computes value, critic and actor loss; see `Algorithm.losses`."""
        value_loss, _, value_metrics = fit_value(self.value, self.target_critic, batch, self.expectile)
        with_entropy = self.temperature is not None or with_metrics
        output = self.critic(batch.observations, batch.actions, with_entropy=with_entropy)
        target = value_target(self.value, batch, self.discount)
        fit = fit_critic_to_value(output, target, self.td_loss, self.temperature, inputs, whole_mean)
        actor_loss = flow_matching_loss(self.policy, batch.observations, batch.actions, *noise)
        total = value_loss + fit.loss + actor_loss
        return collected(total, value_metrics | fit.metrics | {"actor_loss": actor_loss}, fit.diagnostics, with_metrics)

    def before_step(self, inputs: Inputs) -> None:
        """Target <- tau * critic + (1 - tau) * target, with the critic as it is before its gradient step."""
        move_target(self.target_critic, self.critic, self.tau)

    def actor(self, extraction: str | None = None) -> Actor:
        """Returns the actor: the best of ``policy.num_samples`` behaviour actions, or one with "behaviour_flow".

        Raises:
            ValueError: The extraction is unknown.
        """
        if extraction == "behaviour_flow":
            return Actor((self.action_dim,), self.policy.flow_actions, self.action_chunk)
        require("extraction", extraction in (None, "implicit"), "implicit or behaviour_flow", extraction)
        return Actor((self.policy.num_samples, self.action_dim), self.act, self.action_chunk)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Maps (B, n_s) observations and (B, policy.num_samples, n_a) noise to (B, n_a) actions in [-1, 1]."""
        return self.policy.best_flow_actions(self.critic, observations, noise, "min")
