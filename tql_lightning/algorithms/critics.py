"""Functions for algorithms that learn Q(s, a) from TD targets: critic fit, entropy control, target networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tql_lightning.algorithms import losses
from tql_lightning.nn.critic import Critic, CriticOutput
from tql_lightning.nn.dropout import without_dropout
from tql_lightning.nn.temperature import EntropyControl
from tql_lightning.system.private_api import interpolate
from tql_lightning.training.distributed import identity
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import ParameterGroup, nothing
from tql_lightning.training.sharding import call_with_frozen_parameters, own_shares
from tql_lightning.training.update import Inputs


class CriticFit(NamedTuple):
    """Losses and values of a critic's fit to TD targets.

    Attributes:
        loss: TD loss, plus entropy loss and temperature loss under entropy control; a scalar.
        values: Q_k(s, a), (B, E).
        metrics: Scalars to log.
        diagnostics: attention_entropy, temperature and target_entropy, (L, 2) each, as far as there are any.
    """

    loss: Tensor
    values: Tensor
    metrics: dict[str, Tensor]
    diagnostics: dict[str, Tensor]


def require_target_settings(discount: float, tau: float) -> None:
    """Checks the settings of a TD target and its target network.

    Raises:
        ValueError: One is out of its range; the message names it.
    """
    require("discount", 0.0 <= discount <= 1.0, "between 0 and 1", discount)
    require("tau", 0.0 < tau <= 1.0, "above 0 and at most 1", tau)


def make_temperature(
    entropy_control: Callable[[int, int], EntropyControl] | None, critic: Critic
) -> EntropyControl | None:
    """Makes the attention temperatures of a critic; None without entropy control or without attention."""
    if entropy_control is None or critic.num_layers == 0:
        return None
    return entropy_control(critic.num_layers, critic.num_tokens)


def critic_groups(critic: Critic, temperature: EntropyControl | None) -> list[ParameterGroup]:
    """Returns the parameter groups of a critic and its temperatures, whose gradients are clipped together."""
    groups = [ParameterGroup("critic", critic, critic.decays)]
    if temperature is not None and any(True for _ in temperature.parameters()):
        groups.append(ParameterGroup("temperature", temperature, nothing, clipped_with="critic"))
    return groups


def entropy_inputs(temperature: EntropyControl | None, update: int) -> Inputs:
    """Returns entropy targets (L, 2) as ``target_entropy``; empty without entropy control or without a target."""
    target = None if temperature is None else temperature.target_entropy(update)
    return {} if target is None else {"target_entropy": target}


def fit_critic(
    output: CriticOutput,
    target: Tensor,
    value_loss: Callable[[Tensor, Tensor | None, Tensor], Tensor],
    temperature: EntropyControl | None,
    inputs: Inputs,
    whole_mean: Callable[[Tensor], Tensor] = identity,
) -> CriticFit:
    """Computes TD and entropy loss, which move the critic, and temperature loss, which moves the temperatures.

    Args:
        output: Output of the online critic at (s, a), with entropy if there are temperatures.
        target: TD target y, (B,), without gradient.
        value_loss: TD loss from values, logits and target.
        temperature: Attention temperatures, or None.
        inputs: Result of `entropy_inputs`.
        whole_mean: See `Algorithm.losses`; for temperatures with damping.
    """
    values, entropy, logits = output.at_least_float32()
    td_loss = value_loss(values, logits, target)
    entropy_loss = temperature_loss = torch.zeros_like(td_loss)
    diagnostics = {} if entropy is None else {"attention_entropy": entropy}
    if temperature is not None and entropy is not None:
        diagnostics["temperature"] = temperature()
        weight = temperature.entropy_weight()
        if temperature.damping:
            weight = weight + temperature.damping * (inputs["target_entropy"] - whole_mean(entropy.detach()))
        entropy_loss = losses.entropy_loss(entropy, weight)
        if "target_entropy" in inputs:
            diagnostics["target_entropy"] = inputs["target_entropy"]
            temperature_loss = losses.temperature_loss(entropy, temperature(), inputs["target_entropy"])
    loss = td_loss + entropy_loss + temperature_loss
    metrics = {
        "critic_loss": loss,
        "td_loss": td_loss,
        "entropy_loss": entropy_loss,
        "temperature_loss": temperature_loss,
        "q_mean": values.mean(),
        "q_min": values.min(),
        "q_max": values.max(),
        "target_q_mean": target.mean(),
    }
    return CriticFit(loss, values, metrics, diagnostics)


def frozen_values(critic: Critic, observations: Tensor, actions: Tensor) -> Tensor:
    """Returns a critic's values (B, E) without dropout; gradients reach the actions but not the critic."""
    with without_dropout(critic):
        output: CriticOutput = call_with_frozen_parameters(critic, observations, actions)
    return output.at_least_float32().values


@torch.no_grad()
def move_target(target: nn.Module, source: nn.Module, share: float | Tensor) -> None:
    """Target <- share * source + (1 - share) * target; buffers (sigma-Reparam's singular vectors) are copied.

    Args:
        target: Network to move.
        source: Network with the same layers.
        share: Number or scalar tensor; 0 leaves parameters and buffers unchanged.
    """
    own, other = own_shares(target.parameters()), own_shares(source.parameters())
    interpolate(own, other, share)
    for target_buffer, buffer in zip(target.buffers(), source.buffers(), strict=True):
        target_buffer.copy_(torch.where(share > 0, buffer, target_buffer) if isinstance(share, Tensor) else buffer)
