"""Policy extraction: the ways to choose actions by a flow policy and a critic, one object each."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from tql_lightning.nn.critic import Critic
from tql_lightning.nn.extraction import Extraction
from tql_lightning.nn.policy import FlowPolicy


class PolicyExtraction(ABC):
    """One way to choose actions.

    Attributes:
        uses_critic: whether `act` needs a critic.
        with_zero_noise: name of the extraction that gives the same actions with zero noise, without a critic.
    """

    uses_critic = False
    with_zero_noise: Extraction

    def noise_shape(self, action_dim: int, num_samples: int) -> tuple[int, ...]:
        """Shape of the standard normal noise of one observation."""
        return (action_dim,)

    @abstractmethod
    def act(self, policy: FlowPolicy, critic: Critic | None, observations: Tensor, noise: Tensor) -> Tensor:
        """(B, n_s) observations and (B, *noise_shape) noise -> (B, n_a) actions in [-1, 1]."""

    def candidates(
        self, policy: FlowPolicy, critic: Critic | None, observations: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The (B, S, n_a) actions that `act` chooses among, and their (B, S) scores; it takes the highest."""
        actions = self.act(policy, critic, observations, noise).unsqueeze(1)
        return actions, actions.new_zeros(actions.shape[:2])


class OneStepExtraction(PolicyExtraction):
    """FQL's one-step policy, clip(mu(s, z), -1, 1)."""

    with_zero_noise: Extraction = "fql"

    def act(self, policy: FlowPolicy, critic: Critic | None, observations: Tensor, noise: Tensor) -> Tensor:
        """See `PolicyExtraction.act`."""
        return policy.one_step_actions(observations, noise).clamp(-1.0, 1.0)


class FlowExtraction(PolicyExtraction):
    """Behaviour cloning: the end of the behaviour flow."""

    with_zero_noise: Extraction = "behaviour_flow"

    def act(self, policy: FlowPolicy, critic: Critic | None, observations: Tensor, noise: Tensor) -> Tensor:
        """See `PolicyExtraction.act`."""
        return policy.flow_actions(observations, noise)


class BestOfFlowExtraction(PolicyExtraction):
    """Of ``num_samples`` ends of the behaviour flow the one with the highest Q of its smallest head."""

    uses_critic = True
    with_zero_noise: Extraction = "behaviour_flow"  # all candidates are then the same

    def noise_shape(self, action_dim: int, num_samples: int) -> tuple[int, ...]:
        """One row per candidate."""
        return (num_samples, action_dim)

    def act(self, policy: FlowPolicy, critic: Critic | None, observations: Tensor, noise: Tensor) -> Tensor:
        """See `PolicyExtraction.act`."""
        assert critic is not None
        return policy.best_flow_actions(critic, observations, noise)

    def candidates(
        self, policy: FlowPolicy, critic: Critic | None, observations: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `PolicyExtraction.candidates`."""
        assert critic is not None
        repeated = observations.unsqueeze(1).expand(-1, noise.shape[1], -1)
        actions = policy.flow_actions(repeated, noise)
        scores = critic(repeated.flatten(0, 1), actions.flatten(0, 1)).values.amin(dim=-1)
        return actions, scores.view(noise.shape[:2])


EXTRACTIONS: dict[str, PolicyExtraction] = {
    "fql": OneStepExtraction(),
    "implicit": BestOfFlowExtraction(),
    "behaviour_flow": FlowExtraction(),
}
