"""What algorithms share that learn Q(s, a) from TD targets: critic, target critic, value loss and entropy control."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tql_lightning.algorithms import losses
from tql_lightning.nn.critic import Critic, CriticOutput, make_critic
from tql_lightning.nn.temperature import EntropyControl
from tql_lightning.nn.value_loss import ValueLoss, return_range
from tql_lightning.training.base_stub import Algorithm, Execution, Optimisation, ParameterGroup
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.sharding import call_held_fixed, own_shares


class CriticFit(NamedTuple):
    """What fitting the critic to a TD target gives.

    Attributes:
        loss: TD loss plus, under entropy control, entropy and temperature loss; a scalar.
        values: Q_k(s, a), (B, E).
        metrics: scalars to log.
        diagnostics: attention entropy, temperature and its targets, (L, 2) each; empty without attention.
    """

    loss: Tensor
    values: Tensor
    metrics: dict[str, Tensor]
    diagnostics: dict[str, Tensor]


class CriticAlgorithm(Algorithm):
    """An algorithm with a critic and its target network; any critic, value loss and entropy control go with it.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI).
        critic: makes the critic from (observation_dim, action_dim).
        entropy_control: makes the attention temperatures from (num_layers, num_tokens) of the critic; null leaves
            the entropy alone. Without effect for a critic that has no attention.
        value_loss: makes the TD loss from the range of discounted returns.
        reward_range: smallest and largest reward of transitions that continue (taken from the dataset by the CLI).
        final_reward_range: the same of transitions that terminate; null if none does.
        discount: gamma.
        tau: share of the critic that moves into the target critic at each update.
        action_chunk: h, steps of the environment that one decision is made of.
        optimisation: learning rates, schedule, weight decay and clipping.
        execution: compilation, CUDA graphs and precision of matrix products.

    Raises:
        ValueError: a setting is out of its range; the message names it.
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
        action_chunk: int,
        optimisation: Optimisation,
        execution: Execution,
    ) -> None:
        super().__init__(
            observation_dim, action_dim, action_chunk=action_chunk, optimisation=optimisation, execution=execution
        )
        require("discount", 0.0 <= discount <= 1.0, "between 0 and 1", discount)
        require("tau", 0.0 < tau <= 1.0, "above 0 and at most 1", tau)
        self.discount, self.tau = discount, tau
        self.value_loss_function = value_loss(return_range(reward_range, final_reward_range, discount))
        self.critic = make_critic(critic, observation_dim, action_dim, self.value_loss_function)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature: EntropyControl | None = None
        if entropy_control is not None and self.critic.num_layers > 0:
            self.temperature = entropy_control(self.critic.num_layers, self.critic.num_tokens)

    def critic_groups(self) -> list[ParameterGroup]:
        """Parameter groups of the critic and of its temperatures."""
        groups = [ParameterGroup("critic", self.critic, self.critic.decays)]
        if self.temperature is not None:
            groups.append(ParameterGroup("temperature", self.temperature, lambda *_: False, clipped_with="critic"))
        return groups

    def inputs(self, update: int) -> dict[str, Tensor]:
        """Entropy targets (L, 2) under entropy control that has targets."""
        target = None if self.temperature is None else self.temperature.target_entropy(update)
        return {} if target is None else {"target_entropy": target}

    def fit_critic(
        self,
        observations: Tensor,
        actions: Tensor,
        target: Tensor,
        inputs: dict[str, Tensor],
        with_metrics: bool,
        sum_over_heads: bool = False,
        row_weights: Tensor | None = None,
    ) -> CriticFit:
        """TD loss of the online critic, and the two losses of entropy control where there is any.

        Args:
            observations: (B, n_s).
            actions: (B, n_a).
            target: y, (B,), without gradient.
            inputs: of `inputs`.
            with_metrics: whether to compute what is only logged.
            sum_over_heads: multiply the TD loss, a mean over heads, by their number.
            row_weights: how much each row's TD loss counts, (B,); None for 1.
        """
        with_entropy = self.temperature is not None or with_metrics
        output: CriticOutput = self.critic(observations, actions, with_entropy=with_entropy)
        values, entropy, logits = output.at_least_float32()
        td_loss = self.value_loss_function(values, logits, target, row_weights)
        loss = td_loss = td_loss * values.shape[-1] if sum_over_heads else td_loss
        metrics = {"td_loss": td_loss, "q_mean": values.mean(), "q_min": values.min(), "q_max": values.max()}
        diagnostics = {} if entropy is None else {"attention_entropy": entropy}
        if self.temperature is not None and entropy is not None:
            metrics["entropy_loss"] = losses.entropy_loss(entropy, self.temperature.entropy_weight())
            loss = loss + metrics["entropy_loss"]
            diagnostics["temperature"] = self.temperature()
            if "target_entropy" in inputs:
                targets = diagnostics["target_entropy"] = inputs["target_entropy"]
                metrics["temperature_loss"] = losses.temperature_loss(entropy, self.temperature(), targets)
                loss = loss + metrics["temperature_loss"]
        metrics["critic_loss"] = loss
        return CriticFit(loss, values, metrics, diagnostics)

    def frozen_critic_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Online critic's values (B, E) whose gradient reaches the actions and not the critic."""
        output: CriticOutput = call_held_fixed(self.critic, observations, actions)
        return output.at_least_float32().values

    def target_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Target critic's values (B, E), without gradient."""
        with torch.no_grad():
            output: CriticOutput = self.target_critic(observations, actions)
        return output.at_least_float32().values

    def before_step(self, inputs: dict[str, Tensor]) -> None:
        """Target <- tau * critic + (1 - tau) * target, with the critic as it is before its step."""
        del inputs
        move_target(self.target_critic, self.critic, self.tau)

    def train(self, mode: bool = True) -> Any:
        """Switches to training or evaluation; the target critic never drops out."""
        super().train(mode)
        self.target_critic.eval()
        return self


@torch.no_grad()
def move_target(target: nn.Module, source: nn.Module, share: float | Tensor) -> None:
    """Target <- share * source + (1 - share) * target; buffers (sigma-Reparam's singular vectors) are copied.

    Args:
        target: network that follows.
        source: network of the same kind.
        share: a number, or a scalar tensor; at 0 nothing moves, buffers neither.
    """
    own, other = own_shares(target.parameters()), own_shares(source.parameters())
    torch._foreach_lerp_(own, other, [share] * len(own) if isinstance(share, Tensor) else share)
    for target_buffer, buffer in zip(target.buffers(), source.buffers(), strict=True):
        target_buffer.copy_(torch.where(share > 0, buffer, target_buffer) if isinstance(share, Tensor) else buffer)
