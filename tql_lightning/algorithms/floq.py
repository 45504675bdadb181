"""floq (arXiv 2509.06863): a critic that is a flow from noise to returns, and FQL's policy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tql_lightning.algorithms import losses
from tql_lightning.algorithms.critics import frozen_values, move_target
from tql_lightning.algorithms.flow_matching import distill, flow_matching_loss
from tql_lightning.batch import Batch, Draw
from tql_lightning.nn.critic import Critic, MLPCritic
from tql_lightning.nn.policy import MOST_SAMPLES, Actor, FlowPolicy
from tql_lightning.nn.policy_extraction import flow_actor
from tql_lightning.nn.velocity_critic import VelocityCritic
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.distributed import identity
from tql_lightning.training.execution import Execution
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import Optimisation, ParameterGroup
from tql_lightning.training.problem import Problem
from tql_lightning.training.update import Inputs, Losses, collected


class FloqNoise(NamedTuple):
    """Random numbers of one update, with R noise samples per row.

    Attributes:
        next_action: z' ~ N(0, I) of the actions at s', (..., B, R, n_a).
        next_return: u' ~ U[0, 1), from which the target flow's initial noise is made, (..., B, R).
        current_return: u ~ U[0, 1), from which the flow's initial noise is made, (..., B, R).
        return_time: t ~ U[0, 1) of the flow's loss, (..., B, R).
        flow_x0: x_0 ~ N(0, I), start of the behaviour flow, (..., B, n_a).
        flow_t: t ~ U[0, 1), time of the behaviour flow, (..., B, 1).
        distillation: z ~ N(0, I), shared by student, teacher and the Q term, (..., B, n_a).
        metric: z ~ N(0, I) of the logged action error, (..., B, n_a).
    """

    next_action: Tensor
    next_return: Tensor
    current_return: Tensor
    return_time: Tensor
    flow_x0: Tensor
    flow_t: Tensor
    distillation: Tensor
    metric: Tensor


@dataclass  # not frozen: Lightning copies settings field by field
class ReturnFlow:
    """How returns become a flow from noise.

    Args:
        noise_samples: R, noise samples per row.
        noise_coverage: Share of the range of returns that noise spans.
        reward_margin: Margin on both sides of the range of rewards, for the embedding of returns.
        train_at_zero_only: Whether to match velocities at t = 0 only.
        release_range: Whether to extend both ranges to 0 and let every reward recur for ever, as the release does.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Examples:
        >>> ReturnFlow(release_range=True).of(Problem(reward_range=(-2.0, -1.0))).reward_range
        (-2.0, 0.0)
    """

    noise_samples: int = 8
    noise_coverage: float = 0.1
    reward_margin: float = 0.01
    train_at_zero_only: bool = False
    release_range: bool = False

    def __post_init__(self) -> None:
        samples, coverage, margin = self.noise_samples, self.noise_coverage, self.reward_margin
        require("return_flow.noise_samples", 1 <= samples <= MOST_SAMPLES, f"1 to {MOST_SAMPLES:,}", samples)
        require("return_flow.noise_coverage", 0.0 < coverage < math.inf, "a finite number above 0", coverage)
        require("return_flow.reward_margin", 0.0 <= margin < math.inf, "a finite number of at least 0", margin)

    def of(self, problem: Problem) -> Problem:
        """Returns a problem with the ranges of rewards that are meant: its own, or those of the release."""
        if not self.release_range:
            return problem
        known = [0.0, *(problem.reward_range or ()), *(problem.final_reward_range or ())]
        return replace(problem, reward_range=(min(known), max(known)), final_reward_range=None)


class Floq(Algorithm):
    """floq: returns by flow matching, distilled into an ordinary critic for FQL's policy.

    With I(u; s, a, x_0) the returns after Euler steps of the velocities u from noise x_0, j one of R noise samples, and
    ubar the target network of u::

        y        mean over j of r + discount * mask * aggregate_k I(ubar; s', clip mu(s', z'_j), x'_0j)_k
        flow     mean over batch and members k of the sum over j of (u_k(s, a, x_t, t) - (y - x_0))^2,
                 x_t = (1 - t) x_0 + t y
        distil   mean over batch and k of (Q_k(s, a) - mean over k and j of I(u; s, a, x_0)_k)^2
        actor    FQL's: cloning flow + bc_coefficient * distillation - mean of Q(s, clip mu(s, z))

    Noise is uniform between ``return_flow.noise_coverage`` times the smallest and the largest return of the data. One
    Adam step uses all losses at the old parameters; then ubar moves towards u as it was before the step. Q has no
    target network.

    Deviations: the range of returns follows from the data's rewards and terminations; the release uses that of a buffer
    padded with zeros (``return_flow.release_range``). The time enters as cos(t), as in the release; the paper has
    Fourier features.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI).
        velocity_critic: Makes u from (observation_dim, action_dim, smallest return, largest return).
        critic: Makes Q from (observation_dim, action_dim).
        policy: Makes the policy from (observation_dim, action_dim).
        problem: Length of a decision and ranges of rewards (taken from the data by the CLI).
        discount: gamma.
        tau: Share of u that moves into ubar at each update.
        target_aggregation: Aggregation over the members of ubar in y.
        bc_coefficient: Weight of the policy's distillation loss.
        normalize_q_loss: Whether to divide the policy's Q loss by the mean |Q|.
        return_flow: Noise samples, ranges and times of the flow of returns.
        optimisation: Learning rates, schedule, weight decay and clipping.
        execution: Compilation, CUDA graphs and precision of matrix products.

    Raises:
        ValueError: A setting is out of its range, or the range of returns is unknown or empty; the message names it.

    Examples:
        >>> model = Floq(3, 1, problem=Problem(reward_range=(-1.0, 0.0)))
        >>> [group.name for group in model.parameter_groups()]
        ['velocity_critic', 'critic', 'actor']
    """

    Noise = FloqNoise
    fixed_settings = (*Algorithm.fixed_settings, "velocity_critic", "return_flow")

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        velocity_critic: Callable[[int, int, float, float], VelocityCritic] = VelocityCritic,
        critic: Callable[[int, int], Critic] = MLPCritic,
        policy: Callable[[int, int], FlowPolicy] = partial(FlowPolicy, layer_norm=False),  # noqa: B008
        problem: Problem = Problem(),  # noqa: B008  (never changed)
        discount: float = 0.99,
        tau: float = 0.005,
        target_aggregation: Literal["mean", "min"] = "mean",
        bc_coefficient: float = 10.0,
        normalize_q_loss: bool = False,
        return_flow: ReturnFlow = ReturnFlow(),  # noqa: B008  (never changed)
        optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
        execution: Execution = Execution(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(observation_dim, action_dim, problem=problem, optimisation=optimisation, execution=execution)
        require("discount", 0.0 <= discount < 1.0, "at least 0 and below 1", discount)
        require("tau", 0.0 < tau <= 1.0, "above 0 and at most 1", tau)
        require("target_aggregation", target_aggregation in ("mean", "min"), "mean or min", target_aggregation)
        require("bc_coefficient", 0.0 <= bc_coefficient < math.inf, "a finite number of at least 0", bc_coefficient)
        low, high = return_flow.of(problem).known_returns(discount)
        self.noise_low, self.noise_high = return_flow.noise_coverage * low, return_flow.noise_coverage * high
        margin = return_flow.reward_margin / (1.0 - discount)
        self.velocity_critic = velocity_critic(observation_dim, action_dim, low - margin, high + margin)
        self.target_velocity_critic = copy.deepcopy(self.velocity_critic).requires_grad_(False)
        self.critic = critic(observation_dim, action_dim)
        self.policy = policy(observation_dim, action_dim)
        self.discount, self.tau, self.return_flow = discount, tau, return_flow
        self.target_aggregation: Literal["mean", "min"] = target_aggregation
        self.bc_coefficient, self.normalize_q_loss = bc_coefficient, normalize_q_loss
        self.save_hyperparameters()

    def noise_draws(self) -> dict[str, Draw]:
        """Returns the draws of `FloqNoise`."""
        samples, normal = Draw("uniform", (self.return_flow.noise_samples,)), Draw("normal", (self.action_dim,))
        return {
            "next_action": Draw("normal", (self.return_flow.noise_samples, self.action_dim)),
            "next_return": samples,
            "current_return": samples,
            "return_time": samples,
            "flow_x0": normal,
            "flow_t": Draw("uniform", (1,)),
            "distillation": normal,
            "metric": normal,
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns velocities, distilled critic and policy."""
        return [
            ParameterGroup("velocity_critic", self.velocity_critic),
            ParameterGroup("critic", self.critic, self.critic.decays),
            ParameterGroup("actor", self.policy),
        ]

    def losses(
        self,
        batch: Batch,
        noise: FloqNoise,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """Computes critic and actor loss; see `Algorithm.losses`."""
        del inputs
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        actor_loss, actor_metrics = self.actor_loss(batch, noise, with_metrics, whole_mean)
        return collected(critic_loss + actor_loss, critic_metrics | actor_metrics, {}, with_metrics)

    def critic_loss(self, batch: Batch, noise: FloqNoise) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes flow matching of returns, and the distillation of the current returns into Q."""
        target = self.td_target(batch, noise)
        observations, actions = (self.per_sample(x) for x in (batch.observations, batch.actions))
        x0 = self.return_noise(noise.current_return)
        with torch.no_grad():
            returns = self.velocity_critic(observations, actions, x0)
        t = torch.zeros_like(x0) if self.return_flow.train_at_zero_only else noise.return_time.flatten().unsqueeze(-1)
        goal = self.per_sample(target.unsqueeze(-1))
        x_t = losses.flow_interpolation(x0, goal, t)
        velocity = self.velocity_critic.velocity(observations, actions, x_t.expand_as(returns), t)
        floq_loss = self.by_sample((velocity - (goal - x0)).square()).sum(dim=1).mean()

        values = self.critic(batch.observations, batch.actions).at_least_float32().values
        sampled = self.by_sample(returns)
        mean_return = sampled.mean(dim=(1, 2))
        distillation_loss = (values - mean_return.unsqueeze(-1)).square().mean()
        critic_loss = floq_loss + distillation_loss
        return critic_loss, {
            "critic_loss": critic_loss,
            "floq_loss": floq_loss,
            "distilled_critic_loss": distillation_loss,
            "q_mean": values.mean(),
            "return_variance": sampled.mean(dim=-1).var(dim=-1, correction=0).mean(),
            "td_error": (mean_return - target).square().mean(),
        }

    @torch.no_grad()
    def td_target(self, batch: Batch, noise: FloqNoise) -> Tensor:
        """Computes y = mean over samples of r + discount * mask * aggregate_k I(ubar; s', a', x'_0)_k, (B,)."""
        observations = self.per_sample(batch.next_observations)
        actions = self.one_step_actions(observations, noise.next_action.flatten(0, 1))
        returns = self.target_velocity_critic(observations, actions, self.return_noise(noise.next_return))
        aggregated = returns.mean(dim=-1) if self.target_aggregation == "mean" else returns.amin(dim=-1)
        mean = self.by_sample(aggregated).mean(dim=1)
        target: Tensor = batch.rewards + self.discount * batch.masks * mean
        return target

    def actor_loss(
        self, batch: Batch, noise: FloqNoise, with_metrics: bool, whole_mean: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes FQL's actor loss with the distilled critic, which is held fixed."""
        x0, t = noise.flow_x0, noise.flow_t
        behaviour_flow_loss = flow_matching_loss(self.policy, batch.observations, batch.actions, x0, t)
        student, distillation_loss = distill(self.policy, batch.observations, noise.distillation, t)
        values = frozen_values(self.critic, batch.observations, student.clamp(-1.0, 1.0))
        q_loss = losses.q_loss(values, whole_mean(losses.q_scale(values)) if self.normalize_q_loss else None)
        loss = behaviour_flow_loss + self.bc_coefficient * distillation_loss + q_loss
        metrics = {
            "actor_loss": loss,
            "behaviour_flow_loss": behaviour_flow_loss,
            "distillation_loss": distillation_loss,
            "q_loss": q_loss,
            "policy_q_mean": values.mean(),
        }
        if with_metrics:
            with torch.no_grad():
                sampled = self.one_step_actions(batch.observations, noise.metric)
                metrics["action_error"] = (sampled - batch.actions).square().mean()
        return loss, metrics

    def per_sample(self, rows: Tensor) -> Tensor:
        """Repeats every row R times, (B, n) -> (B R, n)."""
        return rows.repeat_interleave(self.return_flow.noise_samples, dim=0)

    def by_sample(self, rows: Tensor) -> Tensor:
        """Groups rows by sample, (B R, ...) -> (B, R, ...)."""
        return rows.unflatten(0, (-1, self.return_flow.noise_samples))  # type: ignore[no-untyped-call, no-any-return]

    def return_noise(self, uniform: Tensor) -> Tensor:
        """Makes noise of returns from uniform numbers, (B, R) -> (B R, 1)."""
        return (self.noise_low * (1.0 - uniform) + self.noise_high * uniform).flatten().unsqueeze(-1)

    def before_step(self, inputs: Inputs) -> None:
        """Moves ubar towards u as it is before its step."""
        del inputs
        move_target(self.target_velocity_critic, self.velocity_critic, self.tau)

    def one_step_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """clip(mu(s, z), -1, 1): (B, n_s), (B, n_a) -> (B, n_a)."""
        return self.policy.one_step_actions(observations, noise).clamp(-1.0, 1.0)

    def actor(self, extraction: str | None = None) -> Actor:
        """Returns the actor of the one-step policy, or of another extraction; see `Algorithm.actor`."""
        return flow_actor(extraction or "fql", self.policy, self.critic, self.action_chunk)
