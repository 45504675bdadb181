"""Base class of algorithms with one critic and its target network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tql_lightning.algorithms.critics import (
    CriticFit,
    critic_groups,
    entropy_inputs,
    fit_critic,
    frozen_values,
    make_temperature,
    move_target,
)
from tql_lightning.nn.critic import Critic, make_critic
from tql_lightning.nn.temperature import EntropyControl
from tql_lightning.nn.value_loss import ValueLoss, return_range
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import ParameterGroup
from tql_lightning.training.update import Inputs, Losses


class CriticAlgorithm(Algorithm):
    """An algorithm with a critic and its target network, for any critic, value loss and entropy control.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI).
        critic: Makes the critic from (observation_dim, action_dim).
        entropy_control: Makes the attention temperatures from (num_layers, num_tokens) of the critic; null for
            no entropy control. Has no effect on a critic without attention.
        value_loss: Makes the TD loss from the range of discounted returns.
        reward_range: Smallest and largest reward of transitions that continue (taken from the dataset by the CLI).
        final_reward_range: The same for transitions that terminate; null if none does.
        discount: gamma.
        tau: Share of the critic that moves into the target critic at each update.
        settings: Settings of `Algorithm`.

    Raises:
        ValueError: A setting is out of its range; the message names it.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        critic: Callable[[int, int], Critic],
        entropy_control: Callable[[int, int], EntropyControl] | None,
        value_loss: Callable[[tuple[float, float] | None], ValueLoss],
        reward_range: tuple[float, float] | None,
        final_reward_range: tuple[float, float] | None,
        discount: float,
        tau: float,
        **settings: Any,
    ) -> None:
        super().__init__(observation_dim, action_dim, **settings)
        require("discount", 0.0 <= discount <= 1.0, "between 0 and 1", discount)
        require("tau", 0.0 < tau <= 1.0, "above 0 and at most 1", tau)
        self.discount, self.tau = discount, tau
        self.td_loss = value_loss(return_range(reward_range, final_reward_range, discount))
        self.critic = make_critic(critic, observation_dim, action_dim, self.td_loss)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature = make_temperature(entropy_control, self.critic)

    def critic_groups(self) -> list[ParameterGroup]:
        """Returns the parameter groups of the critic and its temperatures."""
        return critic_groups(self.critic, self.temperature)

    def inputs(self, update: int) -> Inputs:
        """Returns the entropy targets at the update."""
        return entropy_inputs(self.temperature, update)

    def fit_critic(
        self,
        observations: Tensor,
        actions: Tensor,
        target: Tensor,
        inputs: Inputs,
        with_metrics: bool,
        whole_mean: Callable[[Tensor], Tensor],
        *,
        sum_over_heads: bool = False,
        row_weights: Tensor | None = None,
    ) -> CriticFit:
        """Computes the TD loss of the online critic, and the two losses of entropy control if there is any.

        Args:
            observations: (B, n_s).
            actions: (B, n_a).
            target: TD target y, (B,), without gradient.
            inputs: Result of `inputs`.
            with_metrics: Whether to compute what is only logged.
            whole_mean: See `Algorithm.losses`.
            sum_over_heads: Whether to sum the TD loss over heads instead of averaging.
            row_weights: Weight of each row's TD loss, (B,); None for 1.
        """

        def td_loss(values: Tensor, logits: Tensor | None, target: Tensor) -> Tensor:
            loss: Tensor = self.td_loss(values, logits, target, row_weights)
            return loss * values.shape[-1] if sum_over_heads else loss

        with_entropy = self.temperature is not None or with_metrics
        output = self.critic(observations, actions, with_entropy=with_entropy)
        return fit_critic(output, target, td_loss, self.temperature, inputs, whole_mean)

    def target_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Returns the target critic's values (B, E), without gradient."""
        with torch.no_grad():
            values: Tensor = self.target_critic(observations, actions).at_least_float32().values
        return values

    def frozen_critic_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Returns the online critic's values (B, E); gradients reach the actions but not the critic."""
        return frozen_values(self.critic, observations, actions)

    def before_step(self, inputs: Inputs) -> None:
        """Target <- tau * critic + (1 - tau) * target, with the critic as it is before its gradient step."""
        move_target(self.target_critic, self.critic, self.tau)

    def train(self, mode: bool = True) -> Any:
        """Switches to training or evaluation mode; the target critic stays in evaluation mode, without dropout."""
        super().train(mode)
        self.target_critic.eval()
        return self


def collected(total: Tensor, metrics: dict[str, Tensor], diagnostics: dict[str, Tensor], with_metrics: bool) -> Losses:
    """Makes `Losses` with detached metrics, or none without ``with_metrics``."""
    kept = {name: value.detach() for name, value in metrics.items()} if with_metrics else {}
    return Losses(total, kept, diagnostics)
