"""FQL: `TQL` with FQL's critic and constants."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from tests.golden_methods.arrays import Arrays, Named, mlp, mlp_critic
from tests.golden_methods.bases import Method, largest
from tql_lightning.algorithms.critics import frozen_values
from tql_lightning.algorithms.losses import flow_interpolation, td_target
from tql_lightning.algorithms.tql import TQL
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.training.optimisation import Optimisation


class FQLGolden(Method):
    noise = {  # noqa: RUF012
        "next_action": "next_action_noise",
        "flow_x0": "flow_x0",
        "flow_t": "flow_t",
        "distillation": "distill_noise",
        "metric": "metric_noise",
    }
    metrics = {  # noqa: RUF012
        "critic/critic_loss": "critic_loss",
        "critic/q_mean": "q_mean",
        "critic/q_max": "q_max",
        "critic/q_min": "q_min",
        "actor/actor_loss": "actor_loss",
        "actor/bc_flow_loss": "behaviour_flow_loss",
        "actor/distill_loss": "distillation_loss",
        "actor/q_loss": "q_loss",
        "actor/q": "policy_q_mean",
        "actor/mse": "action_error",
    }

    def build(self) -> TQL:
        config = self.config
        return TQL(
            self.observation_dim,
            self.action_dim,
            critic=partial(MLPCritic, hidden_dims=config["value_hidden_dims"], layer_norm=config["layer_norm"]),
            policy=partial(
                FlowPolicy,
                hidden_dims=config["actor_hidden_dims"],
                layer_norm=config["actor_layer_norm"],
                flow_steps=config["flow_steps"],
            ),
            entropy_control=None,
            discount=config["discount"],
            tau=config["tau"],
            target_aggregation=config["q_agg"],
            bc_coefficient=config["alpha"],
            normalize_q_loss=config["normalize_q_loss"],
            optimisation=Optimisation(learning_rate=config["lr"]),
        )

    def named(self, model: Any) -> list[Named]:
        return [
            *mlp_critic("critic", model.critic),
            *mlp_critic("target_critic", model.target_critic),
            *mlp("actor_bc_flow/mlp", model.policy.behaviour_flow),
            *mlp("actor_onestep_flow/mlp", model.policy.one_step_policy),
        ]

    def forward(self, model: Any, batch: Any, noise: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
        observations = batch.observations
        next_actions = model.one_step_actions(batch.next_observations, noise.next_action)
        next_values = model.target_critic(batch.next_observations, next_actions).values
        mean = model.target_aggregation == "mean"
        x_t = flow_interpolation(noise.flow_x0, batch.actions, noise.flow_t)
        student = model.policy.one_step_actions(observations, noise.distillation)
        return {
            "next_actions": next_actions,
            "next_q_ensemble": next_values,
            "next_q": next_values.mean(dim=-1) if mean else next_values.amin(dim=-1),
            "target_q": td_target(batch.rewards, batch.masks, next_values, model.discount, model.target_aggregation),
            "q": model.critic(observations, batch.actions).values,
            "bc_x_t": x_t,
            "bc_pred": model.policy.velocity(observations, x_t, noise.flow_t),
            "flow_actions": model.policy.flow_actions(observations, noise.distillation),
            "onestep_actions": student,
            "actor_q_ensemble": frozen_values(model.critic, observations, student.clamp(-1.0, 1.0)),
        }

    def acting(self, model: Any, act: dict[str, Tensor]) -> dict[str, Any]:
        return {"actions": model.actor().act(act["observations"], act["noise"])}

    def scales(self, core: Arrays) -> dict[str, float]:
        values = core["actor_q_ensemble"]
        scale = float(abs(values.mean(axis=-1)).mean()) if self.config["normalize_q_loss"] else 1.0
        found = super().scales(core) | {"actor/q": largest(values), "actor/q_loss": largest(values) / scale}
        distillation = self.config["alpha"] * largest(core["info/actor/distill_loss"])
        found["actor/actor_loss"] = max(found["actor/q_loss"], distillation)
        return found
