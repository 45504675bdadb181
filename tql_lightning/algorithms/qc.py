"""Q-chunking (QC, arXiv 2507.07969): FQL over chunks of actions, or the best of several cloned chunks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

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
from tql_lightning.algorithms.flow_matching import distill, flow_draws
from tql_lightning.batch import Draw
from tql_lightning.nn.critic import Critic, MLPCritic, make_critic
from tql_lightning.nn.policy import Actor, BehaviourFlow, FlowPolicy
from tql_lightning.nn.temperature import EntropyControl
from tql_lightning.nn.value_loss import SquaredError, ValueLoss
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.distributed import identity
from tql_lightning.training.execution import Execution
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import Optimisation, ParameterGroup
from tql_lightning.training.problem import Problem
from tql_lightning.training.update import Inputs, Losses, collected


class QCBatch(NamedTuple):
    """Windows of h steps, h the action chunk.

    Attributes:
        observations: s of the first step, (..., B, n_s).
        actions: The h actions, concatenated, (..., B, h n_a).
        rewards: Discounted sum over the window, (..., B).
        next_observations: s after the window's last step, (..., B, n_s).
        masks: gamma^(h - 1), or 0 where the MDP terminated, (..., B).
        valid: 1 for steps of the window that belong to its episode, else 0, (..., B, h).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    masks: Tensor
    valid: Tensor


class QCNoise(NamedTuple):
    """Random numbers of one update.

    Attributes:
        next_action: z' of the action at s', (..., B, h n_a), or (..., B, N, h n_a) for the best of N.
        flow_x0: x_0 ~ N(0, I), start of the behaviour flow, (..., B, h n_a).
        flow_t: t ~ U[0, 1), time of the behaviour flow, (..., B, 1).
        distillation: z of student and teacher, (..., B, h n_a); unused for the best of N.
    """

    next_action: Tensor
    flow_x0: Tensor
    flow_t: Tensor
    distillation: Tensor


class QC(Algorithm):
    """Q-chunking: critic and policy over chunks of h actions that run open loop.

    With a' the action that acting chooses at s', Qbar the target critic and A = (a_t, ..., a_(t+h-1))::

        y       sum of discounted rewards + discount * mask * aggregate_k Qbar_k(s', a')
        critic  mean over batch and heads of valid * (Q_k(s, A) - y)^2
        flow    mean over batch and all entries of valid * (v(s, x_t, t) - (A - x_0))^2
        fql     flow + bc_coefficient * mean of (mu(s, z) - flow's action)^2 - mean of Q(s, clip mu(s, z))
        act     "implicit": the one of policy.num_samples flow actions with the largest aggregate_k Q_k (QC);
                "fql": clip mu(s, z) (QC-FQL)

    One Adam step uses all losses at the old parameters; then Qbar moves towards Q as it was before the step.

    Deviations: the project's own windows end with a success and keep true terminations, so that every row is valid
    (``data.windows``); with the authors' windows (``data.release_windows``) invalid rows have weight 0 but count in the
    mean's divisor. Sampler and agent share one discount. "implicit" has no one-step policy; the release has an unused
    one.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: h n_a, n_a the environment's (taken from the dataset by the CLI).
        critic: Makes the critic from (observation_dim, action_dim).
        policy: Makes the policy from (observation_dim, action_dim): ``BehaviourFlow`` for "implicit", ``FlowPolicy``
            for "fql".
        entropy_control: Makes the attention temperatures of a critic with attention; null for none.
        value_loss: Makes the critic's TD loss from the range of discounted returns.
        problem: Length of a decision and ranges of rewards (taken from the data by the CLI).
        discount: gamma of one step of the environment.
        tau: Share of the critic that moves into the target critic at each update.
        target_aggregation: Aggregation over the heads in the TD target and in the choice of "implicit".
        bc_coefficient: Weight of the distillation loss of "fql".
        extraction: How actions are chosen, in the TD target too: "implicit" or "fql".
        release_decay: Whether weight decay also applies to biases and norms, as in the release, not only to matrices.
        optimisation: Learning rates, schedule, weight decay and clipping.
        execution: Compilation, CUDA graphs and precision of matrix products.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Examples:
        >>> model = QC(3, 5, problem=Problem(action_chunk=5))
        >>> model.env_action_dim, model.actor().action_chunk
        (1, 5)
    """

    Batch = QCBatch
    Noise = QCNoise

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        critic: Callable[[int, int], Critic] = MLPCritic,
        policy: Callable[[int, int], BehaviourFlow] = BehaviourFlow,
        entropy_control: Callable[[int, int], EntropyControl] | None = None,
        value_loss: Callable[[tuple[float, float] | None], ValueLoss] = SquaredError,
        problem: Problem = Problem(action_chunk=5),  # noqa: B008  (never changed)
        discount: float = 0.99,
        tau: float = 0.005,
        target_aggregation: Literal["mean", "min"] = "mean",
        bc_coefficient: float = 100.0,
        extraction: Literal["implicit", "fql"] = "implicit",
        release_decay: bool = False,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
        execution: Execution = Execution(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(observation_dim, action_dim, problem=problem, optimisation=optimisation, execution=execution)
        require_target_settings(discount, tau)
        require("target_aggregation", target_aggregation in ("mean", "min"), "mean or min", target_aggregation)
        require("extraction", extraction in ("implicit", "fql"), "implicit or fql", extraction)
        require("bc_coefficient", 0.0 <= bc_coefficient < math.inf, "a finite number of at least 0", bc_coefficient)
        self.td_loss = value_loss(problem.return_range(discount))
        self.critic = make_critic(critic, observation_dim, action_dim, self.td_loss)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature = make_temperature(entropy_control, self.critic)
        self.discount, self.tau = discount, tau
        self.policy = policy(observation_dim, action_dim)
        fits = isinstance(self.policy, FlowPolicy) == (extraction == "fql")
        require("policy", fits, 'FlowPolicy for "fql" and BehaviourFlow for "implicit"', type(self.policy).__name__)
        self.target_aggregation: Literal["mean", "min"] = target_aggregation
        self.bc_coefficient, self.extraction = bc_coefficient, extraction
        self.release_decay = release_decay
        self.save_hyperparameters()

    @property
    def acting_noise(self) -> tuple[int, ...]:
        """Shape of the noise for one decision."""
        return (self.action_dim,) if self.extraction == "fql" else (self.policy.num_samples, self.action_dim)

    def noise_draws(self) -> dict[str, Draw]:
        """Returns the draws of `QCNoise`."""
        normal = Draw("normal", (self.action_dim,))
        return {
            "next_action": Draw("normal", self.acting_noise),
            **flow_draws(self.action_dim),
            "distillation": normal,
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns critic, temperatures and policy."""
        groups = [*critic_groups(self.critic, self.temperature), ParameterGroup("actor", self.policy)]
        return [replace(group, decays=lambda *_: True) for group in groups] if self.release_decay else groups

    def inputs(self, update: int) -> Inputs:
        """Returns the entropy targets at the update."""
        return entropy_inputs(self.temperature, update)

    def losses(
        self,
        batch: QCBatch,
        noise: QCNoise,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """Computes critic and actor loss; see `Algorithm.losses`."""
        fit = self.critic_loss(batch, noise, inputs, with_metrics, whole_mean)
        actor_loss, actor_metrics = self.actor_loss(batch, noise)
        return collected(fit.loss + actor_loss, fit.metrics | actor_metrics, fit.diagnostics, with_metrics)

    def critic_loss(
        self, batch: QCBatch, noise: QCNoise, inputs: Inputs, with_metrics: bool, whole_mean: Callable[[Tensor], Tensor]
    ) -> CriticFit:
        """Fits y = R + discount * mask * aggregate_k Qbar_k(s', a'); rows that leave their episode have weight 0."""
        with torch.no_grad():
            next_actions = self.act(batch.next_observations, noise.next_action)
            next_values = self.target_critic(batch.next_observations, next_actions).at_least_float32().values
        target = losses.td_target(batch.rewards, batch.masks, next_values, self.discount, self.target_aggregation)
        with_entropy = self.temperature is not None or with_metrics
        output = self.critic(batch.observations, batch.actions, with_entropy=with_entropy)
        td_loss = partial(self.td_loss, row_weights=batch.valid[..., -1])
        return fit_critic(output, target, td_loss, self.temperature, inputs, whole_mean)

    def actor_loss(self, batch: QCBatch, noise: QCNoise) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes flow matching; with "fql" also distillation and the Q term."""
        x_t = losses.flow_interpolation(noise.flow_x0, batch.actions, noise.flow_t)
        velocity = self.policy.velocity(batch.observations, x_t, noise.flow_t)
        errors = (velocity - (batch.actions - noise.flow_x0)).square().view(len(velocity), self.action_chunk, -1)
        loss = flow_loss = (errors * batch.valid[:, : self.action_chunk, None]).mean()
        metrics = {"behaviour_flow_loss": flow_loss}
        if isinstance(self.policy, FlowPolicy):
            student, distillation_loss = distill(self.policy, batch.observations, noise.distillation, noise.flow_t)
            policy_values = frozen_values(self.critic, batch.observations, student.clamp(-1.0, 1.0))
            q_loss = losses.q_loss(policy_values)
            loss = flow_loss + self.bc_coefficient * distillation_loss + q_loss
            metrics |= {"distillation_loss": distillation_loss, "q_loss": q_loss, "policy_q_mean": policy_values.mean()}
        return loss, metrics | {"actor_loss": loss}

    def before_step(self, inputs: Inputs) -> None:
        """Target <- tau * critic + (1 - tau) * target, with the critic as it is before its gradient step."""
        move_target(self.target_critic, self.critic, self.tau)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Maps (B, n_s) observations and (B, *acting_noise) noise to (B, h n_a) actions in [-1, 1]."""
        if isinstance(self.policy, FlowPolicy):
            return self.policy.one_step_actions(observations, noise).clamp(-1.0, 1.0)
        return self.policy.best_flow_actions(self.critic, observations, noise, self.target_aggregation)

    def actor(self, extraction: str | None = None) -> Actor:
        """Returns the actor of training, or with "behaviour_flow" that of plain cloning.

        Raises:
            ValueError: The extraction is unknown.
        """
        if extraction == "behaviour_flow":
            return Actor((self.action_dim,), self.policy.flow_actions, self.action_chunk)
        known = extraction in (None, self.extraction)
        require("extraction", known, f"{self.extraction} or behaviour_flow", extraction)
        return Actor(self.acting_noise, self.act, self.action_chunk)
