"""ReBRAC (arXiv 2305.09836) as in FQL's release: TD3 with cloning penalties in actor and critic."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tql_lightning.algorithms import losses
from tql_lightning.algorithms.critics import (
    CriticFit,
    critic_groups,
    entropy_inputs,
    fit_critic,
    frozen_values,
    make_temperature,
    move_target,
    require_target_settings,
)
from tql_lightning.batch import Draw
from tql_lightning.nn.critic import Critic, MLPCritic, make_critic
from tql_lightning.nn.gaussian_policy import GaussianPolicy, SquashedGaussianPolicy
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.policy import Actor
from tql_lightning.nn.temperature import EntropyControl
from tql_lightning.nn.value_loss import SquaredError, ValueLoss
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.distributed import identity
from tql_lightning.training.execution import Execution
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import Optimisation, ParameterGroup
from tql_lightning.training.problem import Problem
from tql_lightning.training.sharding import is_sharded
from tql_lightning.training.update import Inputs, Losses, collected


class ReBRACBatch(NamedTuple):
    """Transitions with the data's next action.

    Attributes:
        observations: s, (..., B, n_s).
        actions: a, (..., B, n_a).
        rewards: r, (..., B).
        next_observations: s', (..., B, n_s).
        masks: 0 only where the MDP terminated, (..., B).
        next_actions: The data's action at s', (..., B, n_a); 0 where there is none.
        next_action_known: 1 where there is one, 0 where the episode ends, (..., B).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    masks: Tensor
    next_actions: Tensor
    next_action_known: Tensor


class ReBRACNoise(NamedTuple):
    """Random numbers of one update.

    Attributes:
        next_action: Standard normal, of the target policy's action at s', (..., B, n_a).
    """

    next_action: Tensor


@dataclass  # not frozen: Lightning copies settings field by field
class Smoothing:
    """Noise on the policy's actions (target policy smoothing).

    Args:
        actor_noise: Standard deviation.
        actor_noise_clip: Bound.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Examples:
        >>> Smoothing(actor_noise=0.1)
        Smoothing(actor_noise=0.1, actor_noise_clip=0.5)
    """

    actor_noise: float = 0.2
    actor_noise_clip: float = 0.5

    def __post_init__(self) -> None:
        for name, number in asdict(self).items():
            require(f"smoothing.{name}", 0.0 <= number < math.inf, "a finite number of at least 0", number)


class ReBRAC(Algorithm):
    """ReBRAC: a deterministic policy pi(s), and cloning penalties in its loss and in the critic's target.

    With pibar and Qbar the target networks, a'_data the data's next action, and means over the batch::

        a'      clip(pibar(s') + clip(actor_noise * eps, +-actor_noise_clip), +-1)
        y       r + discount * mask * (min_k Qbar_k(s', a') - critic_bc_coefficient * |a' - a'_data|^2)
        critic  mean over heads too of (Q_k(s, a) - y)^2
        actor   -mean of min_k Q_k(s, pi(s)) / mean |min_k Q_k| + actor_bc_coefficient * mean of |pi(s) - a|^2

    The actor's loss counts, and both targets move, only at every ``actor_period``-th update. As in the release, one
    Adam step uses all losses at the old parameters. At other updates the policy's gradient is 0 and momentum moves it.

    Deviation: where a recording ends without a termination there is no next action, and the critic's penalty of that
    row is 0; the release takes the first action of the next episode.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI).
        critic: Makes the critic from (observation_dim, action_dim).
        policy: Makes the policy from (observation_dim, action_dim); it acts by its mode.
        entropy_control: Makes the attention temperatures of a critic with attention; null for none.
        value_loss: Makes the critic's TD loss from the range of discounted returns.
        problem: Length of a decision and ranges of rewards (taken from the data by the CLI).
        discount: gamma.
        tau: Share of the networks that moves into their targets.
        actor_bc_coefficient: Weight of cloning in the actor's loss.
        critic_bc_coefficient: Weight of cloning in the critic's target.
        actor_period: Number of updates from one update of the actor to the next.
        smoothing: Noise of a', and with the policy's temperatures as factors that of acting.
        optimisation: Learning rates, schedule, weight decay and clipping.
        execution: Compilation, CUDA graphs and precision of matrix products.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Examples:
        >>> ReBRAC(3, 1).Batch._fields[-2:]
        ('next_actions', 'next_action_known')
    """

    Batch = ReBRACBatch
    Noise = ReBRACNoise

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        critic: Callable[[int, int], Critic] = MLPCritic,
        policy: Callable[[int, int], GaussianPolicy] = SquashedGaussianPolicy,
        entropy_control: Callable[[int, int], EntropyControl] | None = None,
        value_loss: Callable[[tuple[float, float] | None], ValueLoss] = SquaredError,
        problem: Problem = Problem(),  # noqa: B008  (never changed)
        discount: float = 0.99,
        tau: float = 0.005,
        actor_bc_coefficient: float = 0.1,
        critic_bc_coefficient: float = 0.01,
        actor_period: int = 2,
        smoothing: Smoothing = Smoothing(),  # noqa: B008  (never changed)
        optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
        execution: Execution = Execution(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(observation_dim, action_dim, problem=problem, optimisation=optimisation, execution=execution)
        require_target_settings(discount, tau)
        for name, number in {
            "actor_bc_coefficient": actor_bc_coefficient,
            "critic_bc_coefficient": critic_bc_coefficient,
        }.items():
            require(name, 0.0 <= number < math.inf, "a finite number of at least 0", number)
        require("actor_period", actor_period >= 1, "at least 1", actor_period)
        self.td_loss = value_loss(problem.return_range(discount))
        self.critic = make_critic(critic, observation_dim, action_dim, self.td_loss)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature = make_temperature(entropy_control, self.critic)
        self.discount, self.tau = discount, tau
        self.policy = policy(observation_dim, action_dim)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.actor_bc_coefficient, self.critic_bc_coefficient = actor_bc_coefficient, critic_bc_coefficient
        self.actor_period, self.smoothing = actor_period, smoothing
        self.save_hyperparameters()

    def noise_draws(self) -> dict[str, Draw]:
        """Returns the draws of `ReBRACNoise`."""
        return {"next_action": Draw("normal", (self.action_dim,))}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns critic, temperatures and policy."""
        return [*critic_groups(self.critic, self.temperature), ParameterGroup("actor", self.policy)]

    def inputs(self, update: int) -> Inputs:
        """Returns entropy targets, and ``actor_update``: 1 if the update, counted from 0, is one of the actor, else 0.

        A CPU skips the actor's losses at other updates; on a GPU reading the number would synchronise the device.
        """
        is_actor_update = (update + 1) % self.actor_period == 0
        return entropy_inputs(self.temperature, update) | {
            "actor_update": torch.tensor(float(is_actor_update), device=self.device)
        }

    def losses(
        self,
        batch: ReBRACBatch,
        noise: ReBRACNoise,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """Computes critic and actor loss; see `Algorithm.losses`."""
        fit = self.critic_loss(batch, noise, inputs, with_metrics, whole_mean)
        if not with_metrics and not is_sharded(self.policy) and _is_zero(inputs["actor_update"]):
            # The policy's gradients must be 0, not None, so that Adam's momentum still moves it.
            parameter_sum = torch.stack([parameter.sum() for parameter in self.policy.parameters()]).sum()
            return Losses(fit.loss + 0.0 * parameter_sum, {}, fit.diagnostics)
        actor_loss, actor_metrics = self.actor_loss(batch, whole_mean)
        total = fit.loss + inputs["actor_update"] * actor_loss
        return collected(total, fit.metrics | actor_metrics, fit.diagnostics, with_metrics)

    def critic_loss(
        self,
        batch: ReBRACBatch,
        noise: ReBRACNoise,
        inputs: Inputs,
        with_metrics: bool,
        whole_mean: Callable[[Tensor], Tensor],
    ) -> CriticFit:
        """Fits y = r + discount * mask * (min_k Qbar_k(s', a') - penalty)."""
        with torch.no_grad():
            next_actions = self.noisy(self.target_policy.mode(batch.next_observations), noise.next_action)
            penalty = batch.next_action_known * losses.cloning_penalty(next_actions, batch.next_actions)
            following = self.target_critic(batch.next_observations, next_actions).at_least_float32()
            next_values = following.values.amin(dim=-1) - self.critic_bc_coefficient * penalty
            target = batch.rewards + self.discount * batch.masks * next_values
        with_entropy = self.temperature is not None or with_metrics
        output = self.critic(batch.observations, batch.actions, with_entropy=with_entropy)
        return fit_critic(output, target, self.td_loss, self.temperature, inputs, whole_mean)

    def actor_loss(
        self, batch: ReBRACBatch, whole_mean: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes -mean of min_k Q_k(s, pi(s)) / mean |min_k Q_k| + actor_bc_coefficient * mean of |pi(s) - a|^2."""
        actions = at_least_float32(self.policy.mode(batch.observations))
        policy_values = frozen_values(self.critic, batch.observations, actions).amin(dim=-1)
        q_loss = losses.normalised_q_loss(policy_values, whole_mean(policy_values.detach().abs().mean()))
        distance = losses.cloning_penalty(actions, batch.actions).mean()
        bc_loss = self.actor_bc_coefficient * distance
        loss = q_loss + bc_loss
        return loss, {"actor_loss": loss, "q_loss": q_loss, "bc_loss": bc_loss, "action_distance": distance}

    def noisy(self, actions: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Adds clipped noise to actions and clips to [-1, 1]; all (..., n_a), ``noise`` standard normal."""
        bound = self.smoothing.actor_noise_clip
        return (actions + (temperature * self.smoothing.actor_noise * noise).clamp(-bound, bound)).clamp(-1.0, 1.0)

    def before_step(self, inputs: Inputs) -> None:
        """Moves the targets, only at updates of the actor, towards critic and policy as they are before their step."""
        share = self.tau * inputs["actor_update"]
        move_target(self.target_critic, self.critic, share)
        move_target(self.target_policy, self.policy, share)

    def actor(self, extraction: str | None = None) -> Actor:
        """Returns the actor: the mode plus noise as in a', scaled by ``policy.acting_temperature``, clipped to [-1, 1].

        Raises:
            ValueError: An extraction is named; there is only one.
        """
        require("extraction", extraction is None, "none, since ReBRAC has no other", extraction)
        return Actor((self.action_dim,), self.act, self.action_chunk)

    def exploring_actor(self) -> Actor:
        """Returns the same actor with ``policy.exploration_temperature``."""
        return Actor(
            (self.action_dim,), partial(self.act, temperature=self.policy.exploration_temperature), self.action_chunk
        )

    def act(self, observations: Tensor, noise: Tensor, temperature: float | None = None) -> Tensor:
        """Maps (B, n_s) observations and (B, n_a) standard normal noise to (B, n_a) actions in [-1, 1]."""
        temperature = self.policy.acting_temperature if temperature is None else temperature
        return self.noisy(self.policy.mode(observations), noise, temperature)


def _is_zero(number: Tensor) -> bool:
    """Whether a number is 0, if that is known without synchronising a GPU or breaking a compiled graph."""
    return not torch.compiler.is_compiling() and number.device.type == "cpu" and not bool(number)
