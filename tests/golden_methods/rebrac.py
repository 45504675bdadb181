"""ReBRAC of FQL's release."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.golden_methods.arrays import Arrays, Named, gaussian_policy, mlp_critic
from tests.golden_methods.bases import Method, largest
from tql_lightning.algorithms.critics import frozen_values
from tql_lightning.algorithms.losses import cloning_penalty
from tql_lightning.algorithms.rebrac import ReBRAC, ReBRACBatch, Smoothing
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.nn.gaussian_policy import GaussianPolicy, SquashedGaussianPolicy
from tql_lightning.training.optimisation import Optimisation


class ReBRACGolden(Method):
    noise = {"next_action": "target_noise"}  # noqa: RUF012
    metrics = {  # noqa: RUF012
        "critic/critic_loss": "critic_loss",
        "critic/q_mean": "q_mean",
        "critic/q_max": "q_max",
        "critic/q_min": "q_min",
        "actor/total_loss": "actor_loss",
        "actor/actor_loss": "q_loss",
        "actor/bc_loss": "bc_loss",
        "actor/mse": "action_distance",
    }
    constants = {"actor/std": 1.0}  # noqa: RUF012

    def build(self) -> ReBRAC:
        config = self.config
        return ReBRAC(
            self.observation_dim,
            self.action_dim,
            critic=partial(MLPCritic, hidden_dims=config["value_hidden_dims"], layer_norm=config["layer_norm"]),
            policy=partial(
                SquashedGaussianPolicy if config["tanh_squash"] else GaussianPolicy,
                hidden_dims=config["actor_hidden_dims"],
                layer_norm=config["actor_layer_norm"],
            ),
            discount=config["discount"],
            tau=config["tau"],
            actor_bc_coefficient=config["alpha_actor"],
            critic_bc_coefficient=config["alpha_critic"],
            actor_period=config["actor_freq"],
            smoothing=Smoothing(config["actor_noise"], config["actor_noise_clip"]),
            optimisation=Optimisation(learning_rate=config["lr"]),
        )

    def named(self, model: Any) -> list[Named]:
        return [
            *mlp_critic("critic", model.critic),
            *mlp_critic("target_critic", model.target_critic),
            *gaussian_policy("actor", model.policy),
            *gaussian_policy("target_actor", model.target_policy),
        ]

    def batch(self, model: Any, arrays: dict[str, Tensor]) -> ReBRACBatch:
        """The release takes every next row's action for the next action."""
        return ReBRACBatch(**arrays, next_action_known=torch.ones_like(arrays["masks"]))

    def forward(self, model: Any, batch: Any, noise: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
        mode = model.target_policy.mode(batch.next_observations)
        next_actions = model.noisy(mode, noise.next_action)
        next_values = model.target_critic(batch.next_observations, next_actions).values
        penalty = cloning_penalty(next_actions, batch.next_actions)
        next_q = next_values.amin(dim=-1) - model.critic_bc_coefficient * penalty
        actions = model.policy.mode(batch.observations)
        return {
            "target_actor_mode": mode,
            "next_actions": next_actions,
            "next_q_ensemble": next_values,
            "critic_penalty": penalty,
            "next_q": next_q,
            "target_q": batch.rewards + model.discount * batch.masks * next_q,
            "q": model.critic(batch.observations, batch.actions).values,
            "policy_actions": actions,
            "actor_q_ensemble": frozen_values(model.critic, batch.observations, actions),
        }

    def acting(self, model: Any, act: dict[str, Tensor]) -> dict[str, Any]:
        observations, noise = act["observations"], act["noise"]
        return {
            "actions_temperature_0": model.actor().act(observations, noise),
            "actions_temperature_1": model.noisy(model.policy.mode(observations), noise, 1.0),
        }

    def scales(self, core: Arrays) -> dict[str, float]:
        lowest = core["actor_q_ensemble"].min(axis=-1)
        q_loss = largest(lowest) / float(abs(lowest).mean())
        return super().scales(core) | {"actor/actor_loss": q_loss, "actor/total_loss": q_loss}
