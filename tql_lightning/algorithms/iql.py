"""Implicit Q-Learning (IQL, arXiv 2110.06169), numerically as in FQL's release."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor

from tql_lightning.algorithms import losses
from tql_lightning.algorithms.critic_algorithm import collected
from tql_lightning.algorithms.expectile_algorithm import ExpectileAlgorithm
from tql_lightning.batch import Batch, Draw
from tql_lightning.nn.critic import Critic, MLPCritic
from tql_lightning.nn.gaussian_policy import GaussianPolicy
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.policy import Actor
from tql_lightning.nn.temperature import EntropyControl
from tql_lightning.nn.value_loss import SquaredError, ValueLoss
from tql_lightning.nn.value_network import ValueNetwork
from tql_lightning.training.distributed import identity
from tql_lightning.training.execution import Execution
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import Optimisation, ParameterGroup
from tql_lightning.training.update import Inputs, Losses


class IQLNoise(NamedTuple):
    """Random numbers of one update.

    Attributes:
        policy: Standard normal noise of the actions that Q scores in "ddpgbc", (..., B, n_a).
    """

    policy: Tensor


class IQL(ExpectileAlgorithm):
    """Implicit Q-Learning: expectile values, and a Gaussian policy by weighted cloning or by DDPG with cloning.

    With Qbar the target critic, means over the batch and A = min_k Q_k(s, a) - V(s)::

        value   mean of w (min_k Qbar_k(s, a) - V(s))^2, w = expectile above V and 1 - expectile below
        critic  mean of the sum over k of (Q_k(s, a) - r - discount * mask * V(s'))^2
        awr     -mean of min(exp(alpha A), 100) log pi(a | s)
        ddpgbc  -mean of min_k Q_k(s, a_pi) / mean |min_k Q_k| - alpha * mean of log pi(a | s)

    One Adam step uses all losses at the old parameters; then Qbar moves towards Q as it was before the step.

    Deviations: the TD target is logged as ``target_q``, in the release as ``q``. The standard deviation while acting is
    a setting; the release explores with 1.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI).
        critic: Makes the critic from (observation_dim, action_dim).
        value: Makes V from (observation_dim).
        policy: Makes the policy from (observation_dim, action_dim).
        entropy_control: Makes the attention temperatures of a critic with attention; null for none.
        value_loss: Makes the critic's TD loss from the range of discounted returns.
        reward_range: Smallest and largest reward of transitions that continue (taken from the dataset by the CLI).
        final_reward_range: The same for transitions that terminate; null if none does.
        action_chunk: h, environment steps per decision (taken from the data by the CLI).
        discount: gamma.
        tau: Share of the critic that moves into the target critic at each update.
        expectile: kappa of V.
        actor_loss: Loss of the policy, "awr" or "ddpgbc".
        alpha: Inverse temperature of "awr"; weight of cloning in "ddpgbc".
        acting_temperature: Factor of the standard deviation of actions; 0 acts by the mean, as in evaluation.
        exploration_temperature: The same factor in an online phase.
        optimisation: Learning rates, schedule, weight decay and clipping.
        execution: Compilation, CUDA graphs and precision of matrix products.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Examples:
        >>> model = IQL(3, 1, expectile=0.9)
        >>> noise = torch.zeros(2, *model.actor().noise_shape)
        >>> model(torch.zeros(2, 3), noise).shape
        torch.Size([2, 1])
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
        reward_range: tuple[float, float] | None = None,
        final_reward_range: tuple[float, float] | None = None,
        action_chunk: int = 1,
        discount: float = 0.99,
        tau: float = 0.005,
        expectile: float = 0.9,
        actor_loss: Literal["awr", "ddpgbc"] = "awr",
        alpha: float = 10.0,
        acting_temperature: float = 0.0,
        exploration_temperature: float = 1.0,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
        execution: Execution = Execution(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            critic=critic,
            value=value,
            entropy_control=entropy_control,
            value_loss=value_loss,
            reward_range=reward_range,
            final_reward_range=final_reward_range,
            action_chunk=action_chunk,
            discount=discount,
            tau=tau,
            expectile=expectile,
            optimisation=optimisation,
            execution=execution,
        )
        require("actor_loss", actor_loss in ("awr", "ddpgbc"), "awr or ddpgbc", actor_loss)
        require("alpha", 0.0 <= alpha < math.inf, "a finite number of at least 0", alpha)
        temperatures = {"acting_temperature": acting_temperature, "exploration_temperature": exploration_temperature}
        for name, temperature in temperatures.items():
            require(name, 0.0 <= temperature < math.inf, "at least 0", temperature)
        self.policy = policy(observation_dim, action_dim)
        self.loss_of_actor, self.alpha, self.acting_temperature = actor_loss, alpha, acting_temperature
        self.exploration_temperature = exploration_temperature
        self.save_hyperparameters()

    def noise_draws(self) -> dict[str, Draw]:
        """Returns the draws of `IQLNoise`."""
        return {"policy": Draw("normal", (self.action_dim,))}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns critic, temperatures, V and policy."""
        return [*self.value_groups(), ParameterGroup("actor", self.policy)]

    def losses(
        self,
        batch: Batch,
        noise: IQLNoise,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """Computes value, critic and actor loss; see `Algorithm.losses`."""
        value_loss, v, value_metrics = self.value_loss(batch)
        fit = self.critic_loss(batch, inputs, with_metrics, whole_mean)
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
            policy_values = self.frozen_critic_values(batch.observations, self.q_actions(mean, noise)).amin(dim=-1)
            scale = whole_mean(policy_values.detach().abs().mean())
            metrics["q_loss"] = losses.normalised_q_loss(policy_values, scale)
            metrics["bc_loss"] = -self.alpha * log_prob.mean()
            loss = metrics["q_loss"] + metrics["bc_loss"]
            metrics |= {"policy_q_mean": policy_values.mean(), "policy_q_abs_mean": policy_values.abs().mean()}
        return loss, metrics | {"actor_loss": loss}

    def q_actions(self, mean: Tensor, noise: IQLNoise) -> Tensor:
        """Returns the actions that Q scores in "ddpgbc": the mean, or a sample if the standard deviation is learned."""
        return self.policy.bounded(mean) if self.policy.log_std is None else self.policy.sample(mean, noise.policy)

    def actor(self, extraction: str | None = None) -> Actor:
        """Returns the actor: the mean plus ``acting_temperature`` standard deviations of noise, clipped to [-1, 1].

        Raises:
            ValueError: An extraction is named; there is only one.
        """
        require("extraction", extraction is None, "none, since IQL has no other", extraction)
        return Actor((self.action_dim,), self.act, self.action_chunk)

    def exploring_actor(self) -> Actor:
        """Returns the same actor with ``exploration_temperature``."""
        return Actor((self.action_dim,), partial(self.act, temperature=self.exploration_temperature), self.action_chunk)

    def act(self, observations: Tensor, noise: Tensor, temperature: float | None = None) -> Tensor:
        """Maps (B, n_s) observations and (B, n_a) standard normal noise to (B, n_a) actions in [-1, 1]."""
        temperature = self.acting_temperature if temperature is None else temperature
        return self.policy.sample(self.policy.mean(observations), noise, temperature)
