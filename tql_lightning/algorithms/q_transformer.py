"""Q-Transformer (arXiv 2309.10150): discretised actions whose dimensions are chosen one after another."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from tql_lightning.algorithms.critics import move_target
from tql_lightning.batch import NoNoise
from tql_lightning.nn.action_bins import ActionBins
from tql_lightning.nn.autoregressive import AutoregressiveCritic, AutoregressiveOutput
from tql_lightning.nn.layer_temperature import LayerTemperature
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.policy import Actor
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.distributed import identity
from tql_lightning.training.execution import Execution
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import Optimisation, ParameterGroup, nothing
from tql_lightning.training.problem import Problem
from tql_lightning.training.update import Inputs, Losses, collected

NextValue = Literal["first_dimension", "greedy", "next_action", "sarsa"]


class QTransformerBatch(NamedTuple):
    """Transitions with information about the rest of their trajectories.

    Attributes:
        observations: s, (..., B, n_s).
        actions: a in [-1, 1], (..., B, n_a).
        rewards: r, (..., B).
        next_observations: s', (..., B, n_s).
        masks: 0 where the MDP terminated, (..., B).
        next_actions: Next action of the trajectory, (..., B, n_a); 0 where there is none.
        next_action_known: 1 where there is a next action, else 0, (..., B).
        terminals: 1 at the last transition of a stored trajectory, (..., B).
        monte_carlo_returns: Discounted rewards from here to the trajectory's end, (..., B).
        monte_carlo_remainders: Discount where the trajectory was truncated; 0 if the MDP terminated, (..., B).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    masks: Tensor
    next_actions: Tensor
    next_action_known: Tensor
    terminals: Tensor
    monte_carlo_returns: Tensor
    monte_carlo_remainders: Tensor


@dataclass  # not frozen: Lightning copies settings field by field
class Returns:
    """How returns are scaled to [0, 1] and bound the targets.

    Args:
        sparse: Whether rewards are 1 at a success and else 0, so that they are returns already and stay unscaled.
        monte_carlo: Whether targets are at least the Monte-Carlo return.
        clip_target: Whether targets are clipped to [0, 1].
        release_returns: Whether to treat ends of trajectories as the release does.

    Examples:
        >>> Returns().scale(Problem(reward_range=(0.0, 1.0)), discount=0.5)
        (0.0, 2.0)
    """

    sparse: bool = False
    monte_carlo: bool = True
    clip_target: bool = True
    release_returns: bool = False

    def scale(self, problem: Problem, discount: float) -> tuple[float, float]:
        """Computes the returns that are scaled to 0 and to 1; in the release every reward recurs for ever.

        Raises:
            ValueError: Rewards are unknown or all equal.
        """
        if self.sparse:
            return 0.0, 1.0
        rewards, final = problem.reward_range, problem.final_reward_range
        if self.release_returns and rewards is not None and final is not None:
            every = *rewards, *final
            problem = replace(problem, reward_range=(min(every), max(every)), final_reward_range=None)
        return problem.known_returns(discount)


class QTransformer(Algorithm):
    """Q-Transformer: a causal transformer values each bin of action dimension i given s and the bins before it.

    Returns are scaled to [0, 1], from the smallest to the largest that the data's rewards allow. With q_i,n the
    sigmoid of dimension i's n-th logit, c_i the bin of the data's action and qbar the target network::

        y_i   i < n_a: max_n qbar_i+1,n(s, c_1 ... c_i);  i = n_a: the scaled r + discount * mask * V(s')
        y_i   at least the scaled Monte-Carlo return, and clipped to [0, 1]
        td    1/2 mean over batch and dimensions of (q_i,c_i - y_i)^2
        cons  1/2 mean over batch and dimensions of (sum over n != c_i of q_i,n^2) / (N - 1)
        loss  td + conservative_weight * cons

    ``next_value`` chooses V(s'): "first_dimension" is max_n qbar_1,n(s'), as in the paper; "greedy" is the last
    dimension's maximum after greedy choices in the others, as in the release; "next_action" is the same maximum after
    the data's next action; "sarsa" is the value of the data's next action. The last two use "first_dimension" where the
    trajectory has no next action. After the optimizer step qbar moves towards q. There is no policy network.

    Deviations, which ``returns.release_returns`` undoes. A truncated trajectory bootstraps as usual; the release treats
    it as terminated, so that its last reward becomes the best return of all. The Monte-Carlo return continues with the
    worst return after a truncation, which keeps it a lower bound. After a termination rewards are 0 for ever, in the
    target and in the scale; the release's target takes the worst return.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI).
        critic: Makes the network from (observation_dim, action_dim).
        action_range: Smallest and largest actions of the dataset, two lists (n_a,) (taken from the dataset by the CLI);
            null for -1 and 1.
        entropy_control: Makes attention temperatures from the number of layers, beyond the paper; null for none.
        problem: Length of a decision and ranges of rewards (taken from the data by the CLI).
        discount: gamma.
        tau: Share of the critic that moves into the target at each update.
        next_value: How V(s') is computed.
        conservative_weight: Weight of the loss that pulls the values of bins not taken to 0.
        returns: How returns are scaled and bound the targets.
        optimisation: Learning rates, schedule, weight decay and clipping.
        execution: Compilation, CUDA graphs and precision of matrix products.

    Raises:
        ValueError: A setting is out of its range, or rewards are unknown or all equal; the message names it.

    Examples:
        >>> model = QTransformer(3, 1, problem=Problem(reward_range=(0.0, 1.0)))
        >>> [group.name for group in model.parameter_groups()]  # no policy network
        ['critic']
    """

    Batch = QTransformerBatch
    fixed_settings = (*Algorithm.fixed_settings, "action_range", "next_value", "returns")

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        *,
        critic: Callable[[int, int], AutoregressiveCritic] = AutoregressiveCritic,
        action_range: tuple[list[float], list[float]] | None = None,
        entropy_control: Callable[[int], LayerTemperature] | None = None,
        problem: Problem = Problem(),  # noqa: B008  (never changed)
        discount: float = 0.99,
        tau: float = 0.005,
        next_value: NextValue = "greedy",
        conservative_weight: float = 0.5,
        returns: Returns = Returns(),  # noqa: B008  (never changed)
        optimisation: Optimisation = Optimisation(  # noqa: B008  (frozen)
            learning_rate=2e-5,
            weight_decay=0.02,
            lr_schedule="warmup_cosine",
            warmup_updates=10_000,
            gradient_clip_norm=1.0,
        ),
        execution: Execution = Execution(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(observation_dim, action_dim, problem=problem, optimisation=optimisation, execution=execution)
        require("discount", 0.0 <= discount < 1.0, "at least 0 and below 1", discount)
        require("tau", 0.0 < tau <= 1.0, "above 0 and at most 1", tau)
        require("next_value", next_value in get_args(NextValue), " or ".join(get_args(NextValue)), next_value)
        finite = 0.0 <= conservative_weight < math.inf
        require("conservative_weight", finite, "a finite number of at least 0", conservative_weight)
        low, high = returns.scale(problem, discount)
        self.worst_return, self.scale = low, 1.0 / (high - low)
        self.network = critic(observation_dim, action_dim)
        self.target_network = copy.deepcopy(self.network).requires_grad_(False)
        lowest, highest = ([-1.0] * action_dim, [1.0] * action_dim) if action_range is None else action_range
        require("action_range", len(lowest) == action_dim, f"{action_dim} numbers each", action_range)
        self.bins = ActionBins(lowest, highest, self.network.num_bins)
        self.temperature = None if entropy_control is None else entropy_control(self.network.num_layers)
        self.discount, self.tau = discount, tau
        self.next_value: NextValue = next_value
        self.conservative_weight, self.returns = conservative_weight, returns
        self.save_hyperparameters()

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns the network, and the temperatures if there are any."""
        groups = [ParameterGroup("critic", self.network, self.network.decays)]
        if self.temperature is not None:
            groups.append(ParameterGroup("temperature", self.temperature, nothing, clipped_with="critic"))
        return groups

    def losses(
        self,
        batch: QTransformerBatch,
        noise: NoNoise,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """Computes TD loss, conservative loss and the losses of entropy control; see `Algorithm.losses`."""
        del noise, inputs, whole_mean  # nothing is random, and every loss is a plain mean over rows
        bins = self.bins(batch.actions)
        targets = self.targets(batch, bins)
        output: AutoregressiveOutput = self.network(batch.observations, bins, with_entropy=self.temperature is not None)
        values = output.logits.sigmoid()
        taken = values.gather(-1, bins.unsqueeze(-1)).squeeze(-1)
        td_loss = 0.5 * (taken - targets).square().mean()
        others = values.square().sum(dim=-1) - taken.square()
        conservative_loss = 0.5 * others.mean() / (self.network.num_bins - 1)
        total = td_loss + self.conservative_weight * conservative_loss
        metrics = {
            "td_loss": td_loss,
            "conservative_loss": conservative_loss,
            "q_mean": taken.mean(),
            "target_q_mean": targets.mean(),
            "target_q_min": targets.min(),
            "target_q_max": targets.max(),
        }
        if self.temperature is not None and output.attention_entropy is not None:
            control = self.temperature.losses(output.attention_entropy)
            total = total + control.entropy_loss + control.temperature_loss
            metrics |= {"entropy_loss": control.entropy_loss, "temperature_loss": control.temperature_loss}
            for layer, (mean, temperature) in enumerate(zip(control.entropy, self.temperature(), strict=True)):
                metrics[f"attention_entropy/layer_{layer}"] = mean
                metrics[f"temperature/layer_{layer}"] = temperature
        metrics["critic_loss"] = total
        return collected(total, metrics, {}, with_metrics)

    @torch.no_grad()
    def targets(self, batch: QTransformerBatch, bins: Tensor) -> Tensor:
        """Computes y, (B, n_a): the best value of the next dimension; for the last dimension the TD target."""
        next_dimension = self.target_network(batch.observations, bins).logits[:, 1:].sigmoid().amax(dim=-1)
        targets = torch.cat([next_dimension, self.td_target(batch).unsqueeze(-1)], dim=-1)
        if self.returns.monte_carlo:
            returns = batch.monte_carlo_returns
            if not self.returns.release_returns:
                returns = returns + batch.monte_carlo_remainders * self.worst_return
            targets = torch.maximum(targets, self.scaled(returns).unsqueeze(-1))
        return targets.clamp(0.0, 1.0) if self.returns.clip_target else targets

    def td_target(self, batch: QTransformerBatch) -> Tensor:
        """Computes the scaled r + discount * mask * V(s'), (B,)."""
        value = self.next_state_value(batch)
        if self.returns.release_returns:  # rewards are scaled alone, and a truncation does not bootstrap
            reward = (batch.rewards - (1.0 - self.discount) * self.worst_return) * self.scale
            return reward + self.discount * batch.masks * (1.0 - batch.terminals) * value
        unscaled = value / self.scale + self.worst_return
        return self.scaled(batch.rewards + self.discount * batch.masks * unscaled)

    def next_state_value(self, batch: QTransformerBatch) -> Tensor:
        """Computes V(s') in scaled units, (B,); see ``next_value``."""
        taken = None if self.next_value in ("first_dimension", "greedy") else self.bins(batch.next_actions)
        dimensions = 1 if self.next_value == "first_dimension" else None
        output: AutoregressiveOutput = self.target_network(batch.next_observations, taken, dimensions=dimensions)
        values = output.logits.sigmoid()
        last = values[:, -1].amax(dim=-1)
        if taken is None:
            return last
        if self.next_value == "sarsa":
            last = values[:, -1].gather(-1, taken[:, -1:]).squeeze(-1)
        return torch.where(batch.next_action_known > 0.0, last, values[:, 0].amax(dim=-1))

    def scaled(self, returns: Tensor) -> Tensor:
        """Scales returns so that the worst is 0 and the best is 1."""
        return (at_least_float32(returns) - self.worst_return) * self.scale

    def after_step(self, inputs: Inputs) -> None:
        """Target <- tau * critic + (1 - tau) * target, with the critic as it is after its step."""
        del inputs
        move_target(self.target_network, self.network, self.tau)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Returns the centres of the best bins, (B, n_s) -> (B, n_a); does not use the noise (B, n_a)."""
        del noise
        return self.bins.centres(self.network(observations).bins)

    def actor(self, extraction: str | None = None) -> Actor:
        """Returns the actor that chooses the best bin of one dimension after another.

        Raises:
            ValueError: The extraction is unknown.
        """
        require("extraction", extraction in (None, "greedy"), "greedy", extraction)
        return Actor((self.action_dim,), self.act, self.action_chunk)
