"""floq's release."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from tests.golden_methods.arrays import Arrays, Named, ensemble, kernel, mlp, mlp_critic, plain
from tests.golden_methods.bases import Method, largest
from tql_lightning.algorithms.floq import Floq, ReturnFlow
from tql_lightning.algorithms.losses import flow_interpolation
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.nn.mlp import MLP
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.velocity_critic import VelocityCritic
from tql_lightning.training.optimisation import Optimisation
from tql_lightning.training.problem import Problem


class FloqGolden(Method):
    metrics = {  # noqa: RUF012
        "critic/critic_loss": "critic_loss",
        "critic/floq_loss": "floq_loss",
        "critic/distilled_critic_loss": "distilled_critic_loss",
        "critic/q": "q_mean",
        "critic/var_flow_returns": "return_variance",
        "critic/td_error": "td_error",
        "actor/actor_loss": "actor_loss",
        "actor/bc_flow_loss": "behaviour_flow_loss",
        "actor/distill_loss": "distillation_loss",
        "actor/q_loss": "q_loss",
        "actor/q": "policy_q_mean",
        "actor/mse": "action_error",
    }
    noise = {  # noqa: RUF012
        "next_action": "next_action_noise",
        "next_return": "next_return_u",
        "current_return": "return_u",
        "return_time": "critic_t",
        "flow_x0": "flow_x0",
        "flow_t": "flow_t",
        "distillation": "distill_noise",
        "metric": "metric_noise",
    }

    def build(self) -> Floq:
        config = self.config
        velocity_critic = partial(
            VelocityCritic,
            hidden_dims=[config["block_width"]] * config["block_depth"],
            num_critics=config["flow_num_ensembles"],
            flow_steps=config["critic_flow_steps"],
            layer_norm=config["layer_norm"],
            return_embedding="probabilities" if config["use_prob_embed"] else "scalar",
            num_bins=config["num_bins"],
            sigma=config["sigma"],
            time_embedding="cosine" if config["embed_time"] else "scalar",
            residual_blocks=config["num_transformations"] if config["use_resnets"] else 0,
            norm_first=not config["activate_before_layernorm"],
        )
        critic = partial(
            MLPCritic,
            hidden_dims=config["value_hidden_dims"],
            num_critics=config["distill_num_ensembles"],
            layer_norm=config["layer_norm"],
        )
        policy = partial(
            FlowPolicy,
            hidden_dims=config["actor_hidden_dims"],
            layer_norm=config["actor_layer_norm"],
            flow_steps=config["actor_flow_steps"],
        )
        return Floq(
            self.observation_dim,
            self.action_dim,
            velocity_critic=velocity_critic,
            critic=critic,
            policy=policy,
            problem=Problem(reward_range=(config["r_min"], config["r_max"])),
            discount=config["discount"],
            tau=config["tau"],
            target_aggregation=config["q_agg"],
            bc_coefficient=config["alpha"],
            normalize_q_loss=config["normalize_q_loss"],
            return_flow=ReturnFlow(
                noise_samples=config["noise_samples"],
                noise_coverage=config["noise_coverage"],
                reward_margin=config["reward_offset"],
                train_at_zero_only=config["train_at_zero_only"],
            ),
            optimisation=Optimisation(learning_rate=config["lr"]),
        )

    def named(self, model: Any) -> list[Named]:
        return [
            *velocity_critic("floq/mlp", model.velocity_critic),
            *velocity_critic("target_floq/mlp", model.target_velocity_critic),
            *mlp_critic("critic", model.critic),
            *mlp("actor_bc_flow/mlp", model.policy.behaviour_flow),
            *mlp("actor_onestep_flow/mlp", model.policy.one_step_policy),
        ]

    def draws(self, model: Any, arrays: dict[str, Tensor], batch: Any) -> Any:
        """The release draws one row per sample; ours have an axis for the samples."""
        size, samples = len(batch.observations), model.return_flow.noise_samples
        shaped = {
            name: array.view(size, samples, -1).squeeze(-1) if name.endswith("_u") or name == "critic_t" else array
            for name, array in arrays.items()
        }
        shaped["next_action_noise"] = arrays["next_action_noise"].view(size, samples, -1)
        return super().draws(model, shaped, batch)

    def forward(self, model: Any, batch: Any, noise: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
        per_sample, by_sample = model.per_sample, model.by_sample
        next_observations = per_sample(batch.next_observations)
        next_actions = model.one_step_actions(next_observations, noise.next_action.flatten(0, 1))
        next_x0 = model.return_noise(noise.next_return)
        next_returns = model.target_velocity_critic(next_observations, next_actions, next_x0)
        observations, actions = per_sample(batch.observations), per_sample(batch.actions)
        x0, target = model.return_noise(noise.current_return), model.td_target(batch, noise)
        returns = model.velocity_critic(observations, actions, x0)
        t = x0 * 0.0 if model.return_flow.train_at_zero_only else noise.return_time.reshape(-1, 1)
        x_t = flow_interpolation(x0, per_sample(target.unsqueeze(-1)), t).expand_as(returns)
        bc_x_t = flow_interpolation(noise.flow_x0, batch.actions, noise.flow_t)
        student = model.policy.one_step_actions(batch.observations, noise.distillation)
        aggregated = next_returns.mean(dim=-1) if model.target_aggregation == "mean" else next_returns.amin(dim=-1)
        return {
            "next_actions": next_actions,
            "next_returns": by_sample(aggregated),
            "target_q": target,
            "current_returns": by_sample(returns),
            "critic_x_0": by_sample(x0).squeeze(-1),
            "critic_x_t": by_sample(x_t),
            "critic_pred": by_sample(model.velocity_critic.velocity(observations, actions, x_t, t)),
            "q": model.critic(batch.observations, batch.actions).values,
            "bc_x_t": bc_x_t,
            "bc_pred": model.policy.velocity(batch.observations, bc_x_t, noise.flow_t),
            "flow_actions": model.policy.flow_actions(batch.observations, noise.distillation),
            "onestep_actions": student,
            "actor_q_ensemble": model.critic(batch.observations, student.clamp(-1.0, 1.0)).values,
        }

    def acting(self, model: Any, act: dict[str, Tensor]) -> dict[str, Any]:
        return {"actions": model.actor().act(act["observations"], act["noise"])}

    def scales(self, core: Arrays) -> dict[str, float]:
        policy_q = core["actor_q_ensemble"]
        normaliser = abs(policy_q.mean(axis=-1)).mean() if self.config["normalize_q_loss"] else 1.0
        found = {"critic/q": largest(core["q"]), "actor/q": largest(policy_q)}
        found["actor/q_loss"] = largest(policy_q) / float(normaliser)
        distillation = self.config["alpha"] * largest(core["info/actor/distill_loss"])
        found["actor/actor_loss"] = max(largest(core["info/actor/bc_flow_loss"]), distillation, found["actor/q_loss"])
        return found


def velocity_critic(prefix: str, critic: VelocityCritic) -> list[Named]:
    """An ensemble of velocities, plain or residual."""
    members = [
        mlp(prefix, member) if isinstance(member, MLP) else residual_mlp(prefix, member) for member in critic.members
    ]
    return list(ensemble(members))


def residual_mlp(prefix: str, network: nn.Module) -> list[Named]:
    """Activated layers under initial_block, hidden_blocks_i and final_block."""
    first, *blocks, last = network.children()
    parts = {"initial_block": first} | {f"hidden_blocks_{i}": block for i, block in enumerate(blocks)}
    named: list[Named] = []
    for part, layers in (parts | {"final_block": nn.Sequential(last)}).items():
        linears = [layer for layer in layers.children() if isinstance(layer, nn.Linear)]
        norms = [layer for layer in layers.children() if isinstance(layer, nn.LayerNorm)]
        for index, layer in enumerate(linears):
            named.append(kernel(f"{prefix}/{part}/Dense_{index}/kernel", layer.weight))
            named.append(plain(f"{prefix}/{part}/Dense_{index}/bias", layer.bias))
        for index, norm in enumerate(norms):
            named.append(plain(f"{prefix}/{part}/LayerNorm_{index}/scale", norm.weight))
            named.append(plain(f"{prefix}/{part}/LayerNorm_{index}/bias", norm.bias))
    return named
