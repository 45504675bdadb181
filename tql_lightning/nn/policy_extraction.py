"""Policy extraction: ways to choose actions with a flow policy and a critic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

from tql_lightning.nn.critic import Critic
from tql_lightning.nn.policy import Actor, FlowPolicy

Extraction = Literal["fql", "best_of_n", "implicit", "behaviour_flow"]  # names of `EXTRACTIONS`


class PolicyExtraction(ABC):
    """One way to choose actions.

    Attributes:
        uses_critic: Whether `act` needs a critic.
        with_zero_noise: Name of the extraction that gives the same actions with zero noise, without a critic.
    """

    uses_critic = False
    with_zero_noise: str

    def noise_shape(self, policy: FlowPolicy) -> tuple[int, ...]:
        """Returns the shape of the standard normal noise for one observation."""
        return (policy.action_dim,)

    @abstractmethod
    def act(self, policy: FlowPolicy, critic: Critic | None, observations: Tensor, noise: Tensor) -> Tensor:
        """Maps (B, n_s) observations and (B, *noise_shape) noise to (B, n_a) actions in [-1, 1]."""


class OneStepExtraction(PolicyExtraction):
    """FQL's one-step policy, clip(mu(s, z), -1, 1)."""

    with_zero_noise: str = "fql"

    def act(self, policy: FlowPolicy, critic: Critic | None, observations: Tensor, noise: Tensor) -> Tensor:
        """See `PolicyExtraction.act`."""
        return policy.one_step_actions(observations, noise).clamp(-1.0, 1.0)


class FlowExtraction(PolicyExtraction):
    """Behaviour cloning: the action of the behaviour flow."""

    with_zero_noise: str = "behaviour_flow"

    def act(self, policy: FlowPolicy, critic: Critic | None, observations: Tensor, noise: Tensor) -> Tensor:
        """See `PolicyExtraction.act`."""
        return policy.flow_actions(observations, noise)


class BestOfFlowExtraction(PolicyExtraction):
    """The best of ``num_samples`` behaviour actions by Q, the minimum over the critic's heads."""

    uses_critic = True
    with_zero_noise: str = "behaviour_flow"  # all candidates are the same then

    def noise_shape(self, policy: FlowPolicy) -> tuple[int, ...]:
        """Returns the shape of one row per candidate."""
        return (policy.num_samples, policy.action_dim)

    def act(self, policy: FlowPolicy, critic: Critic | None, observations: Tensor, noise: Tensor) -> Tensor:
        """See `PolicyExtraction.act`."""
        assert critic is not None
        return policy.best_flow_actions(critic, observations, noise)


EXTRACTIONS: dict[str, PolicyExtraction] = {
    "fql": OneStepExtraction(),
    "best_of_n": BestOfFlowExtraction(),
    "implicit": BestOfFlowExtraction(),  # acts as "best_of_n", but TQL trains differently
    "behaviour_flow": FlowExtraction(),
}


@dataclass(frozen=True)
class FlowActor(Actor):
    """An actor with its networks and the name of its extraction; `flow_actor` makes it.

    Attributes:
        extraction: Name of the extraction, one of `EXTRACTIONS`.
        policy: Flow policy.
        critic: Critic that scores actions; None if the extraction uses none.
    """

    extraction: str = field(kw_only=True)
    policy: FlowPolicy = field(kw_only=True)
    critic: Critic | None = field(kw_only=True)


def flow_actor(extraction: str, policy: FlowPolicy, critic: Critic, action_chunk: int = 1) -> FlowActor:
    """Makes the actor of a flow policy and an extraction.

    Args:
        extraction: Name of the extraction, one of `EXTRACTIONS`.
        policy: Flow policy.
        critic: Critic that scores actions, for extractions that choose.
        action_chunk: See `Actor`.

    Raises:
        ValueError: The extraction is unknown.
    """
    if extraction not in EXTRACTIONS:
        raise ValueError(f"extraction: expected {' or '.join(EXTRACTIONS)}, found {extraction}")
    chosen = EXTRACTIONS[extraction]
    at_zero = EXTRACTIONS[chosen.with_zero_noise]

    def act_without_noise(observations: Tensor) -> Tensor:
        noise = observations.new_zeros(observations.shape[0], policy.action_dim)
        return at_zero.act(policy, None, observations, noise)

    return FlowActor(
        chosen.noise_shape(policy),
        partial(chosen.act, policy, critic),
        action_chunk,
        act_without_noise,
        partial(policy.scored_flow_actions, critic) if isinstance(chosen, BestOfFlowExtraction) else None,
        extraction=extraction,
        policy=policy,
        critic=critic if chosen.uses_critic else None,
    )
