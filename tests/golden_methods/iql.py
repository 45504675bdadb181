"""IQL and IFQL of FQL's release."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from tests.golden_methods.arrays import Arrays, Named, gaussian_policy, mlp, mlp_critic
from tests.golden_methods.bases import Method, largest
from tql_lightning.algorithms.critics import frozen_values
from tql_lightning.algorithms.ifql import IFQL
from tql_lightning.algorithms.iql import IQL
from tql_lightning.algorithms.losses import advantage_weights, flow_interpolation
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.nn.gaussian_policy import GaussianPolicy
from tql_lightning.nn.policy import BehaviourFlow
from tql_lightning.nn.value_network import ValueNetwork
from tql_lightning.training.optimisation import Optimisation

EXPECTILE_METRICS = {
    "critic/critic_loss": "critic_loss",
    "critic/q_mean": "target_q_mean",
    "critic/q_max": "target_q_max",
    "critic/q_min": "target_q_min",
    "value/value_loss": "value_loss",
    "value/v_mean": "v_mean",
    "value/v_max": "v_max",
    "value/v_min": "v_min",
}


class ExpectileGolden(Method):
    """What both have in common."""

    def settings(self) -> dict[str, Any]:
        config = self.config
        sizes = {"hidden_dims": config["value_hidden_dims"], "layer_norm": config["layer_norm"]}
        return {
            "critic": partial(MLPCritic, **sizes),
            "value": partial(ValueNetwork, **sizes),
            "discount": config["discount"],
            "tau": config["tau"],
            "expectile": config["expectile"],
            "optimisation": Optimisation(learning_rate=config["lr"]),
        }

    def value_arrays(self, model: Any) -> list[Named]:
        return [
            *mlp_critic("critic", model.critic),
            *mlp_critic("target_critic", model.target_critic),
            *mlp("value/value_net", model.value.network),
        ]

    def value_forward(self, model: Any, batch: Any) -> dict[str, Any]:
        next_v = model.value(batch.next_observations)
        return {
            "target_critic_q": model.target_critic(batch.observations, batch.actions).values,
            "v": model.value(batch.observations),
            "next_v": next_v,
            "target_q": batch.rewards + model.discount * batch.masks * next_v,
            "q": model.critic(batch.observations, batch.actions).values,
        }

    def scales(self, core: Arrays) -> dict[str, float]:
        found = dict.fromkeys(("critic/q_mean", "critic/q_max", "critic/q_min"), largest(core["target_q"]))
        found |= dict.fromkeys(("value/v_mean", "value/v_max", "value/v_min"), largest(core["v"]))
        return found


class IQLGolden(ExpectileGolden):
    noise = {"policy": "policy_noise"}  # noqa: RUF012

    @property
    def metrics(self) -> dict[str, str]:  # type: ignore[override]
        common = {
            "actor/actor_loss": "actor_loss",
            "actor/bc_log_prob": "log_prob_mean",
            "actor/mse": "action_error",
            "actor/std": "policy_std",
        }
        awr = {"actor/adv": "advantage_mean"}
        ddpgbc = {
            "actor/q_loss": "q_loss",
            "actor/bc_loss": "bc_loss",
            "actor/q_mean": "policy_q_mean",
            "actor/q_abs_mean": "policy_q_abs_mean",
        }
        return EXPECTILE_METRICS | common | (awr if self.config["actor_loss"] == "awr" else ddpgbc)

    def build(self) -> IQL:
        config = self.config
        policy = partial(
            GaussianPolicy,
            hidden_dims=config["actor_hidden_dims"],
            layer_norm=config["actor_layer_norm"],
            learned_std=not config["const_std"],
        )
        return IQL(
            self.observation_dim,
            self.action_dim,
            policy=policy,
            actor_loss=config["actor_loss"],
            alpha=config["alpha"],
            **self.settings(),
        )

    def named(self, model: Any) -> list[Named]:
        return [*self.value_arrays(model), *gaussian_policy("actor", model.policy)]

    def forward(self, model: Any, batch: Any, noise: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
        found = self.value_forward(model, batch)
        mean = model.policy.mean(batch.observations)
        found |= {
            "policy_mean": mean,
            "policy_std": model.policy.std(mean),
            "bc_log_prob": model.policy.log_prob(mean, batch.actions),
        }
        if self.config["actor_loss"] == "awr":
            advantage = found["q"].amin(dim=-1) - found["v"]
            return found | {"adv": advantage, "awr_weight": advantage_weights(advantage, model.alpha)}
        actions = model.q_actions(mean, noise)
        return found | {
            "q_actions": actions,
            "actor_q_ensemble": frozen_values(model.critic, batch.observations, actions),
        }

    def acting(self, model: Any, act: dict[str, Tensor]) -> dict[str, Any]:
        mean = model.policy.mean(act["observations"])
        evaluated = model.actor().act(act["observations"], act["noise"])
        return {
            "actions_temperature_0": evaluated,
            "actions_temperature_1": model.policy.sample(mean, act["noise"], 1.0),
        }

    def scales(self, core: Arrays) -> dict[str, float]:
        found = super().scales(core)
        found["actor/bc_log_prob"] = largest(core["bc_log_prob"])
        if self.config["actor_loss"] == "awr":
            found["actor/adv"] = largest(core["adv"])
            found["actor/actor_loss"] = largest(core["awr_weight"] * core["bc_log_prob"])
        else:
            lowest = core["actor_q_ensemble"].min(axis=-1)
            found["actor/q_mean"] = largest(core["actor_q_ensemble"])
            found["actor/q_loss"] = largest(lowest) / float(abs(lowest).mean())
            found["actor/bc_loss"] = self.config["alpha"] * largest(core["bc_log_prob"])
            found["actor/actor_loss"] = max(found["actor/q_loss"], found["actor/bc_loss"])
        return found


class IFQLGolden(ExpectileGolden):
    noise = {"flow_x0": "flow_x0", "flow_t": "flow_t"}  # noqa: RUF012
    metrics = EXPECTILE_METRICS | {"actor/actor_loss": "actor_loss"}

    def build(self) -> IFQL:
        config = self.config
        policy = partial(
            BehaviourFlow,
            hidden_dims=config["actor_hidden_dims"],
            layer_norm=config["actor_layer_norm"],
            flow_steps=config["flow_steps"],
            num_samples=config["num_samples"],
        )
        return IFQL(
            self.observation_dim,
            self.action_dim,
            policy=policy,
            **self.settings(),
        )

    def named(self, model: Any) -> list[Named]:
        return [*self.value_arrays(model), *mlp("actor_flow/mlp", model.policy.behaviour_flow)]

    def forward(self, model: Any, batch: Any, noise: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
        x_t = flow_interpolation(noise.flow_x0, batch.actions, noise.flow_t)
        return self.value_forward(model, batch) | {
            "bc_x_t": x_t,
            "bc_pred": model.policy.velocity(batch.observations, x_t, noise.flow_t),
        }

    def acting(self, model: Any, act: dict[str, Tensor]) -> dict[str, Any]:
        observations, noise = act["observations"], act["noise"]
        repeated = observations.unsqueeze(1).expand(-1, noise.shape[1], -1)
        candidates = model.policy.flow_actions(repeated, noise)
        values = model.critic(repeated.flatten(0, 1), candidates.flatten(0, 1)).values
        return {
            "candidates": candidates,
            "candidate_q_ensemble": values.unflatten(0, noise.shape[:2]),
            "actions": model.actor().act(observations, noise),
        }
