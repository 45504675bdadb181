"""Implicit Q-Learning (IQL, arXiv 2110.06169), numerically as in FQL's release."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor

from tql_lightning.algorithms import losses
from tql_lightning.algorithms.critics import (
    critic_groups,
    entropy_inputs,
    frozen_values,
    make_temperature,
    move_target,
    require_target_settings,
)
from tql_lightning.algorithms.expectile import fit_critic_to_value, fit_value, value_target
from tql_lightning.batch import Batch, Draw
from tql_lightning.nn.critic import Critic, MLPCritic, make_critic
from tql_lightning.nn.gaussian_policy import GaussianPolicy
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.policy import Actor
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


class IQLNoise(NamedTuple):
    """Random numbers of one update.

    Attributes:
        policy: Standard normal noise of the actions that Q scores in "ddpgbc", (..., B, n_a).
    """

    policy: Tensor


class IQL(Algorithm):
    """Implicit Q-Learning: expectile values, and a Gaussian policy by weighted cloning or by DDPG with cloning.

    With Qbar the target critic, means over the batch and A = min_k Q_k(s, a) - V(s)::

        value   mean of w (min_k Qbar_k(s, a) - V(s))^2, w = expectile above V and 1 - expectile below
        critic  mean of the sum over k of (Q_k(s, a) - r - discount * mask * V(s'))^2
        awr     -mean of min(exp(alpha A), 100) log pi(a | s)
        ddpgbc  -mean of min_k Q_k(s, a_pi) / mean |min_k Q_k| - alpha * mean of log pi(a | s)

    One Adam step uses all losses at the old parameters; then Qbar moves towards Q as it was before the step.

    Deviations: the TD target is logged as ``target_q``, in the release as ``q``. The standard deviation while acting is
    a setting of the policy; the release explores with 1.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI).
        critic: Makes the critic from (observation_dim, action_dim).
        value: Makes V from (observation_dim).
        policy: Makes the policy from (observation_dim, action_dim).
        entropy_control: Makes the attention temperatures of a critic with attention; null for none.
        value_loss: Makes the critic's TD loss from the range of discounted returns.
        problem: Length of a decision and ranges of rewards (taken from the data by the CLI).
        discount: Gamma, by which a reward one environment step later counts less.
        tau: Share of the critic that moves into the target critic at each update.
        expectile: kappa of V.
        actor_loss: Loss of the policy, "awr" or "ddpgbc".
        alpha: Inverse temperature of "awr"; weight of cloning in "ddpgbc".
        optimisation: Learning rates, schedule, weight decay and clipping.
        execution: Compilation, CUDA graphs and precision of matrix products.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Examples:
        >>> model = IQL(3, 1, actor_loss="ddpgbc", alpha=1.0)
        >>> [group.name for group in model.parameter_groups()]
        ['critic', 'value', 'actor']
    """

    Noise = IQLNoise

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        critic: Callable[[int, int], Critic] = MLPCritic,
        value: Callable[[int], ValueNetwork] = ValueNetwork,
        policy: Callable[[int, int], GaussianPolicy] = GaussianPolicy,
        entropy_control: Callable[[int, int], EntropyControl] | None = None,
        value_loss: Callable[[tuple[float, float] | None], ValueLoss] = SquaredError,
        problem: Problem = Problem(),  # noqa: B008  (never changed)
        discount: float = 0.99,
        tau: float = 0.005,
        expectile: float = 0.9,
        actor_loss: Literal["awr", "ddpgbc"] = "awr",
        alpha: float = 10.0,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
        execution: Execution = Execution(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(observation_dim, action_dim, problem=problem, optimisation=optimisation, execution=execution)
        require_target_settings(discount, tau)
        require("expectile", 0.0 < expectile < 1.0, "above 0 and below 1", expectile)
        require("actor_loss", actor_loss in ("awr", "ddpgbc"), "awr or ddpgbc", actor_loss)
        require("alpha", 0.0 <= alpha < math.inf, "a finite number of at least 0", alpha)
        self.td_loss = value_loss(problem.return_range(discount))
        self.critic = make_critic(critic, observation_dim, action_dim, self.td_loss)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature = make_temperature(entropy_control, self.critic)
        self.discount, self.tau = discount, tau
        self.expectile, self.value = expectile, value(observation_dim)
        self.policy = policy(observation_dim, action_dim)
        self.loss_of_actor, self.alpha = actor_loss, alpha
        self.save_hyperparameters()

    def noise_draws(self) -> dict[str, Draw]:
        """Returns the draws of `IQLNoise`."""
        return {"policy": Draw("normal", (self.action_dim,))}

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
        noise: IQLNoise,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """Computes value, critic and actor loss; see `Algorithm.losses`."""
        value_loss, v, value_metrics = fit_value(self.value, self.target_critic, batch, self.expectile)
        with_entropy = self.temperature is not None or with_metrics
        output = self.critic(batch.observations, batch.actions, with_entropy=with_entropy)
        target = value_target(self.value, batch, self.discount)
        fit = fit_critic_to_value(output, target, self.td_loss, self.temperature, inputs, whole_mean)
        advantage = (fit.values.amin(dim=-1) - v).detach()
        actor_loss, actor_metrics = self.actor_loss(batch, noise, advantage, whole_mean)
        total = value_loss + fit.loss + actor_loss
        return collected(total, value_metrics | fit.metrics | actor_metrics, fit.diagnostics, with_metrics)

    def actor_loss(
        self, batch: Batch, noise: IQLNoise, advantage: Tensor, whole_mean: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes advantage-weighted cloning, or DDPG with cloning; ``advantage`` is min_k Q_k(s, a) - V(s), (B,)."""
        mean = at_least_float32(self.policy.mean(batch.observations))
        log_prob = self.policy.log_prob(mean, batch.actions)
        metrics = {
            "log_prob_mean": log_prob.mean(),
            "action_error": (mean - batch.actions).square().mean(),
            "policy_std": self.policy.std(mean).mean(),
        }
        if self.loss_of_actor == "awr":
            loss = -(losses.advantage_weights(advantage, self.alpha) * log_prob).mean()
            metrics["advantage_mean"] = advantage.mean()
        else:
            policy_values = frozen_values(self.critic, batch.observations, self.q_actions(mean, noise)).amin(dim=-1)
            scale = whole_mean(policy_values.detach().abs().mean())
            metrics["q_loss"] = losses.normalised_q_loss(policy_values, scale)
            metrics["bc_loss"] = -self.alpha * log_prob.mean()
            loss = metrics["q_loss"] + metrics["bc_loss"]
            metrics |= {"policy_q_mean": policy_values.mean(), "policy_q_abs_mean": policy_values.abs().mean()}
        return loss, metrics | {"actor_loss": loss}

    def q_actions(self, mean: Tensor, noise: IQLNoise) -> Tensor:
        """Returns the actions that Q scores in "ddpgbc": the mean, or a sample if the standard deviation is learned."""
        return self.policy.bounded(mean) if self.policy.log_std is None else self.policy.sample(mean, noise.policy)

    def before_step(self, inputs: Inputs) -> None:
        """Target <- tau * critic + (1 - tau) * target, with the critic as it is before its gradient step."""
        move_target(self.target_critic, self.critic, self.tau)

    def actor(self, extraction: str | None = None) -> Actor:
        """Returns the actor: the mean plus ``policy.acting_temperature`` standard deviations of noise, in [-1, 1].

        Raises:
            ValueError: An extraction is named; there is only one.
        """
        require("extraction", extraction is None, "none, since IQL has no other", extraction)
        return Actor((self.action_dim,), self.act, self.action_chunk)

    def exploring_actor(self) -> Actor:
        """Returns the same actor with ``policy.exploration_temperature``."""
        return Actor(
            (self.action_dim,), partial(self.act, temperature=self.policy.exploration_temperature), self.action_chunk
        )

    def act(self, observations: Tensor, noise: Tensor, temperature: float | None = None) -> Tensor:
        """Maps (B, n_s) observations and (B, n_a) standard normal noise to (B, n_a) actions in [-1, 1]."""
        temperature = self.policy.acting_temperature if temperature is None else temperature
        return self.policy.sample(self.policy.mean(observations), noise, temperature)
