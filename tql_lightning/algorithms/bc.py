"""Behaviour cloning: the baseline that every other method is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from tql_lightning.algorithms.flow_matching import FlowNoise, flow_draws, flow_matching_loss
from tql_lightning.batch import Draw
from tql_lightning.nn.gaussian_policy import GaussianPolicy
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.policy import Actor, BehaviourFlow
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.distributed import identity
from tql_lightning.training.execution import Execution
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import Optimisation, ParameterGroup
from tql_lightning.training.problem import Problem
from tql_lightning.training.update import Inputs, Losses, collected


class Demonstrations(NamedTuple):
    """Batch of behaviour cloning.

    Attributes:
        observations: s, (..., B, n_s).
        actions: a in [-1, 1], (..., B, n_a).
    """

    observations: Tensor
    actions: Tensor


class BC(Algorithm):
    """Behaviour cloning with a flow, or with a Gaussian policy.

    The losses are means over the batch::

        BehaviourFlow   mean of (v(s, x_t, t) - (a - x_0))^2, x_t = (1 - t) x_0 + t a   (arXiv 2502.02538)
        GaussianPolicy  -mean of log pi(a | s); with a standard deviation fixed at 1 this is half the squared error,
                        summed over dimensions, plus a constant

    The flow acts by its Euler steps from noise, the Gaussian by its mean plus ``policy.acting_temperature`` standard
    deviations of noise.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI).
        policy: Makes the policy from (observation_dim, action_dim): ``BehaviourFlow`` or ``GaussianPolicy``.
        problem: Length of a decision and ranges of rewards (taken from the data by the CLI).
        optimisation: Learning rates, schedule, weight decay and clipping.
        execution: Compilation, CUDA graphs and precision of matrix products.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Examples:
        >>> [group.name for group in BC(3, 1).parameter_groups()]  # no critic
        ['actor']
    """

    Batch = Demonstrations
    Noise = FlowNoise

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        policy: Callable[[int, int], BehaviourFlow | GaussianPolicy] = BehaviourFlow,
        problem: Problem = Problem(),  # noqa: B008  (never changed)
        optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
        execution: Execution = Execution(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(observation_dim, action_dim, problem=problem, optimisation=optimisation, execution=execution)
        self.policy = policy(observation_dim, action_dim)
        self.save_hyperparameters()

    def noise_draws(self) -> dict[str, Draw]:
        """Returns the draws of `FlowNoise`."""
        return flow_draws(self.action_dim)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns the policy."""
        return [ParameterGroup("actor", self.policy)]

    def losses(
        self,
        batch: Demonstrations,
        noise: FlowNoise,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """Computes the actor loss; see `Algorithm.losses`."""
        del inputs, whole_mean
        loss, metrics = self.actor_loss(batch, noise)
        return collected(loss, metrics | {"actor_loss": loss}, {}, with_metrics)

    def actor_loss(self, batch: Demonstrations, noise: FlowNoise) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes flow matching, or -mean of log pi(a | s)."""
        if isinstance(self.policy, BehaviourFlow):
            return flow_matching_loss(self.policy, batch.observations, batch.actions, *noise), {}
        mean = at_least_float32(self.policy.mean(batch.observations))
        log_prob = self.policy.log_prob(mean, batch.actions).mean()
        error = (mean - batch.actions).square().mean()
        return -log_prob, {"log_prob_mean": log_prob, "action_error": error}

    def actor(self, extraction: str | None = None) -> Actor:
        """Returns the actor: the behaviour flow, or the Gaussian.

        Raises:
            ValueError: An extraction is named; there is only one.
        """
        require("extraction", extraction is None, "none, since BC has no other", extraction)
        return Actor((self.action_dim,), self.act, self.action_chunk)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Maps (B, n_s) observations and (B, n_a) standard normal noise to (B, n_a) actions in [-1, 1]."""
        if isinstance(self.policy, BehaviourFlow):
            return self.policy.flow_actions(observations, noise)
        return self.policy.sample(self.policy.mean(observations), noise, self.policy.acting_temperature)
