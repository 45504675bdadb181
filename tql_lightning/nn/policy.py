"""The flow policy of FQL (arXiv 2502.02538): a behaviour flow and the one-step policy distilled from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tql_lightning.nn.critic import Critic
from tql_lightning.nn.mlp import MLP
from tql_lightning.nn.sizes import require_sizes

MOST_STEPS, MOST_SAMPLES = 1_000, 4_096  # as acting takes time and memory in proportion, and a checkpoint may name any


@dataclass(frozen=True)
class Actor:
    """A policy as a pure function of observations and noise.

    Attributes:
        noise_shape: Shape of the standard normal noise for one observation.
        act: Maps (B, n_s) observations and (B, *noise_shape) noise to (B, n_a) actions in [-1, 1].
        action_chunk: h, number of consecutive environment actions in one action of ``act``. They run open loop and have
            n_a / h columns each.
        act_without_noise: Maps (B, n_s) observations to the actions of ``act`` with zero noise, at less cost; None if
            there is no cheaper way.
        candidates: Maps the arguments of ``act`` to the (B, S, n_a) actions that it chooses among and their (B, S)
            scores; ``act`` takes the highest score. None for a policy that does not choose. A comparison of two
            implementations accepts any candidate whose score is the highest up to rounding.

    Examples:
        >>> actor = Actor(noise_shape=(1,), act=lambda observations, noise: torch.tanh(noise))
        >>> actor.act(torch.zeros(5, 3), torch.zeros(5, 1)).shape
        torch.Size([5, 1])
    """

    noise_shape: tuple[int, ...]
    act: Callable[[Tensor, Tensor], Tensor]
    action_chunk: int = 1
    act_without_noise: Callable[[Tensor], Tensor] | None = None
    candidates: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def deterministic(self, observations: Tensor) -> Tensor:
        """Acts with zero noise: (B, n_s) -> (B, n_a)."""
        if self.act_without_noise is not None:
            return self.act_without_noise(observations)
        return self.act(observations, observations.new_zeros(observations.shape[0], *self.noise_shape))


class BehaviourFlow(nn.Module):
    """Behaviour flow v(s, x_t, t): a plain MLP whose Euler steps turn noise into actions of the data's distribution.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a (taken from the dataset by the CLI).
        hidden_dims: Sizes of the hidden layers.
        flow_steps: Number of Euler steps from noise to a behaviour action.
        layer_norm: Whether hidden layers end in a LayerNorm.
        num_samples: Number of behaviour actions to choose the best from.
        time_features: Number of cosines and sines that encode the time, half of each (an option of Q-chunking's
            release); 0 for the time itself.

    Raises:
        ValueError: There is no hidden layer, a size is below 1, ``flow_steps`` or ``num_samples`` is below 1 or above
            `MOST_STEPS` or `MOST_SAMPLES`, or ``time_features`` is odd or 2.

    Examples:
        >>> flow = BehaviourFlow(3, 1, hidden_dims=[32], flow_steps=5)
        >>> flow.flow_actions(torch.zeros(5, 3), noise=torch.zeros(5, 1)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (512, 512, 512, 512),
        flow_steps: int = 10,
        layer_norm: bool = False,
        num_samples: int = 32,
        time_features: int = 0,
    ) -> None:
        super().__init__()
        require_sizes("policy", most=MOST_STEPS, flow_steps=flow_steps)
        require_sizes("policy", most=MOST_SAMPLES, num_samples=num_samples)
        self.num_samples = num_samples
        self.action_dim = action_dim
        self.flow_steps = flow_steps
        if time_features % 2 or not (time_features == 0 or time_features >= 4):
            raise ValueError(
                f"policy.time_features: expected 0, or an even number of at least 4, found {time_features}"
            )
        self.time_features = time_features
        time_dim = time_features or 1
        self.behaviour_flow = MLP(observation_dim + action_dim + time_dim, hidden_dims, action_dim, layer_norm)

    def velocity(self, observations: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """v(s, x_t, t): (..., n_s), (..., n_a), (..., 1) -> (..., n_a)."""
        velocity: Tensor = self.behaviour_flow(self.velocity_inputs(observations, x_t, t))
        return velocity

    def velocity_inputs(self, observations: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns the network input of v, (..., n_s + n_a + time features), for the arguments of `velocity`."""
        time = sinusoids(t, self.time_features) if self.time_features else t
        return torch.cat([observations, x_t, time], dim=-1)

    def flow_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Computes actions of the behaviour flow: Euler steps from the noise, clipped to [-1, 1] only at the end.

        Args:
            observations: (..., n_s).
            noise: z, (..., n_a).

        Returns:
            (..., n_a) in [-1, 1].
        """
        actions = noise
        for step in range(self.flow_steps):
            t = torch.full_like(noise[..., :1], step / self.flow_steps)
            actions = actions + self.velocity(observations, actions, t) / self.flow_steps
        return actions.clamp(-1.0, 1.0)

    def scored_flow_actions(
        self, critic: Critic, observations: Tensor, noise: Tensor, aggregation: Literal["mean", "min"] = "min"
    ) -> tuple[Tensor, Tensor]:
        """Computes S behaviour actions and their Q: (B, n_s), (B, S, n_a) -> (B, S, n_a), (B, S).

        Args:
            critic: Critic that scores the actions.
            observations: (B, n_s).
            noise: (B, S, n_a), one row per action.
            aggregation: Aggregation of the critic's heads into one score.
        """
        repeated = observations.unsqueeze(1).expand(-1, noise.shape[1], -1)
        candidates = self.flow_actions(repeated, noise)
        values = critic(repeated.flatten(0, 1), candidates.flatten(0, 1)).values
        scores = values.mean(dim=-1) if aggregation == "mean" else values.amin(dim=-1)
        return candidates, scores.view(noise.shape[:2])

    def best_flow_actions(
        self, critic: Critic, observations: Tensor, noise: Tensor, aggregation: Literal["mean", "min"] = "min"
    ) -> Tensor:
        """Returns the behaviour action with the highest Q out of S, (B, n_a); see `scored_flow_actions`."""
        candidates, scores = self.scored_flow_actions(critic, observations, noise, aggregation)
        best = scores.argmax(dim=1, keepdim=True)
        return candidates.gather(1, best.unsqueeze(-1).expand(-1, 1, self.action_dim)).squeeze(1)


class FlowPolicy(BehaviourFlow):
    """Behaviour flow v(s, x_t, t) and one-step policy mu(s, z), both plain MLPs (section 5 of docs/algorithm.md).

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a (taken from the dataset by the CLI).
        hidden_dims: Sizes of the hidden layers of both networks.
        flow_steps: Number of Euler steps from noise to a behaviour action.
        layer_norm: Whether hidden layers end in a LayerNorm.
        num_samples: Number of behaviour actions that the extractions "best_of_n" and "implicit" choose from.
        time_features: Number of cosines and sines that encode the time, half of each (an option of Q-chunking's
            release); 0 for the time itself.
        distillation: Target of the one-step policy: "euler" for the end of the flow's Euler steps (FQL), "anchor" for
            the flow's velocity at one random time (FAN, arXiv 2605.01663), which costs one step, not ``flow_steps``.

    Raises:
        ValueError: ``distillation`` is unknown, or as for `BehaviourFlow`.

    Examples:
        >>> policy = FlowPolicy(3, 1, hidden_dims=[32, 32], flow_steps=5)
        >>> policy.one_step_actions(torch.zeros(2, 3), torch.zeros(2, 1)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (512, 512, 512, 512),
        flow_steps: int = 10,
        layer_norm: bool = True,
        num_samples: int = 16,
        time_features: int = 0,
        distillation: Literal["euler", "anchor"] = "euler",
    ) -> None:
        super().__init__(observation_dim, action_dim, hidden_dims, flow_steps, layer_norm, num_samples, time_features)
        if distillation not in ("euler", "anchor"):
            raise ValueError(f"policy.distillation: expected 'euler' or 'anchor', found {distillation!r}")
        self.distillation: Literal["euler", "anchor"] = distillation
        self.one_step_policy = MLP(observation_dim + action_dim, hidden_dims, action_dim, layer_norm)

    def one_step_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """mu(s, z), NOT clipped: (..., n_s), (..., n_a) -> (..., n_a)."""
        actions: Tensor = self.one_step_policy(torch.cat([observations, noise], dim=-1))
        return actions


def sinusoids(t: Tensor, size: int) -> Tensor:
    """cos(t f_j) and sin(t f_j), f_j = 10000^(-j / (size / 2 - 1)) for j below size / 2: (..., 1) -> (..., size)."""
    half = size // 2
    frequencies = torch.exp(-math.log(10_000.0) / (half - 1) * torch.arange(half, dtype=t.dtype, device=t.device))
    return torch.cat([(t * frequencies).cos(), (t * frequencies).sin()], dim=-1)
