"""PAC as TQL's authors run it: TQL's update with PAC's critic and a categorical target."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.golden_methods.arrays import Arrays, Named, mlp, plain
from tests.golden_methods.bases import Method, largest
from tests.golden_methods.q_transformer import linear, norm, projection
from tql_lightning.algorithms.critics import frozen_values
from tql_lightning.algorithms.losses import flow_interpolation
from tql_lightning.algorithms.tql import TQL
from tql_lightning.nn.categorical import CategoricalProjection
from tql_lightning.nn.perceiver import CrossBlock, PerceiverCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.transformer import TransformerBlock
from tql_lightning.nn.value_loss import Bootstrap
from tql_lightning.training.optimisation import Optimisation


class PACGolden(Method):
    metrics = {  # noqa: RUF012
        "critic/critic_loss": "critic_loss",
        "critic/q_loss": "td_loss",
        "critic/q_mean": "q_mean",
        "critic/q_min": "q_min",
        "critic/q_max": "q_max",
        "critic/target_q_mean": "target_q_mean",
        "actor/actor_loss": "actor_loss",
        "actor/bc_flow_loss": "behaviour_flow_loss",
        "actor/distill_loss": "distillation_loss",
        "actor/q_loss": "q_loss",
        "actor/q": "policy_q_mean",
        "loss/critic_loss": "critic_loss",
        "loss/actor_loss": "actor_loss",
        "loss/total": "total_loss",
    }
    noise = {  # noqa: RUF012
        "next_action": "next_action_noise",
        "flow_x0": "flow_x0",
        "flow_t": "flow_t",
        "distillation": "distill_noise",
        "metric": "metric_noise",
    }
    unused = ("ac/pi_", "target_ac/pi_")
    no_gradient = ("key/bias",)
    total = "info/loss/total"
    acting_after = 5

    def build(self) -> TQL:
        config = self.config
        critic = partial(
            PerceiverCritic,
            hidden_dim=config["hidden_dim"],
            num_latents=config["num_latents"],
            num_layers=config["num_layers"],
            head_dim=config["hidden_dim"] // config["num_heads"],
            mlp_ratio=config["mlp_ratio"],
        )
        policy = partial(
            FlowPolicy,
            hidden_dims=config["actor_hidden_dims"],
            layer_norm=config["actor_layer_norm"],
            flow_steps=config["flow_steps"],
        )
        return TQL(
            self.observation_dim,
            self.action_dim,
            critic=critic,
            policy=policy,
            entropy_control=None,
            value_loss=partial(
                CategoricalProjection, num_atoms=config["num_atoms"], low=config["v_min"], high=config["v_max"]
            ),
            discount=config["discount"],
            tau=config["tau"],
            bc_coefficient=config["alpha"],
            optimisation=Optimisation(
                learning_rate=config["critic_lr"],
                weight_decay=config["adamw_weight_decay"],
                lr_schedule="warmup_cosine" if config["warmup_steps"] else "constant",
                warmup_updates=config["warmup_steps"],
                schedule_updates=config["train_steps"],
            ),
        )

    def named(self, model: Any) -> list[Named]:
        return [
            *perceiver("ac", model.critic),
            *perceiver("target_ac", model.target_critic),
            *mlp("actor_bc_flow/mlp", model.policy.behaviour_flow),
            *mlp("actor_onestep_flow/mlp", model.policy.one_step_policy),
        ]

    def draws(self, model: Any, arrays: dict[str, Tensor], batch: Any) -> Any:
        """The release logs no action error, for which we draw noise."""
        return super().draws(model, arrays | {"metric_noise": torch.zeros_like(arrays["flow_x0"])}, batch)

    def forward(self, model: Any, batch: Any, noise: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
        next_actions = model.one_step_actions(batch.next_observations, noise.next_action)
        following = model.target_critic(batch.next_observations, next_actions)
        output = model.critic(batch.observations, batch.actions)
        discounts = model.discount * batch.masks
        bootstrap = Bootstrap(batch.rewards, discounts, following.values, following.logits, "mean")
        x_t = flow_interpolation(noise.flow_x0, batch.actions, noise.flow_t)
        student = model.policy.one_step_actions(batch.observations, noise.distillation)
        return {
            "next_actions": next_actions,
            "next_q_logits": following.logits.squeeze(1),
            "target_probs": model.value_loss.target_probabilities(bootstrap, following.logits),
            "q_logits": output.logits.squeeze(1),
            "q": output.values.squeeze(1),
            "bc_x_t": x_t,
            "bc_pred": model.policy.velocity(batch.observations, x_t, noise.flow_t),
            "flow_actions": model.policy.flow_actions(batch.observations, noise.distillation),
            "onestep_actions": student,
            "actor_q": frozen_values(model.critic, batch.observations, student.clamp(-1.0, 1.0)).squeeze(1),
        }

    def acting(self, model: Any, act: dict[str, Tensor]) -> dict[str, Any]:
        return {"actions": model.actor().act(act["observations"], act["noise"])}

    def scales(self, core: Arrays) -> dict[str, float]:
        found = super().scales(core) | {"actor/q": largest(core["actor_q"]), "actor/q_loss": largest(core["actor_q"])}
        distillation = self.config["alpha"] * largest(core["info/actor/distill_loss"])
        parts = largest(core["info/actor/bc_flow_loss"]), distillation, found["actor/q_loss"]
        found["actor/actor_loss"] = found["loss/actor_loss"] = max(parts)
        return found


def perceiver(prefix: str, critic: PerceiverCritic) -> list[Named]:
    """All but the policy head, which has no counterpart."""
    backbone, query = f"{prefix}/backbone", f"{prefix}/action_query"
    rest, hidden, _, output = critic.head
    named = [
        *linear(f"{backbone}/obs_tok/obs_token_proj", critic.observation_projection),
        plain(f"{backbone}/obs_tok/obs_pos", critic.position),
        plain(f"{backbone}/perceiver/latents", critic.latents),
        *cross_block(f"{backbone}/perceiver/enc_xattn", critic.encoder),
        *norm(f"{backbone}/perceiver/latent_final_ln", critic.latent_norm),
        *linear(f"{query}/action_token_proj", critic.action_projection),
        *linear(f"{query}/action_query_proj", critic.action_mixer),
        *norm(f"{query}/action_query_ln", critic.action_norm),
        *cross_block(f"{prefix}/q_decode_xattn", critic.decoder),
        *norm(f"{prefix}/q_rep_ln", rest),
        *linear(f"{prefix}/q_head_h", hidden),
        *linear(f"{prefix}/q_head_out", output),
    ]
    for index, block in enumerate(critic.blocks):
        named += latent_block(f"{backbone}/perceiver/latent_block_{index}", block)
    return named


def cross_block(prefix: str, block: CrossBlock) -> list[Named]:
    named = [
        *norm(f"{prefix}/q_ln", block.query_norm),
        *norm(f"{prefix}/kv_ln", block.context_norm),
        *norm(f"{prefix}/mlp_ln", block.feedforward_norm),
        *projection(f"{prefix}/query", block.query, 0, block.num_heads),
        *linear(f"{prefix}/out", block.out),
        *feedforward(prefix, block.feedforward),
    ]
    for part, name in enumerate(("key", "value")):
        named += projection(f"{prefix}/{name}", block.key_value, part, block.num_heads)
    return named


def latent_block(prefix: str, block: nn.Module) -> list[Named]:
    assert isinstance(block, TransformerBlock)
    named = [
        *norm(f"{prefix}/attn_ln", block.attention_norm),
        *norm(f"{prefix}/mlp_ln", block.feedforward_norm),
        *linear(f"{prefix}/out", block.attention.out),
        *feedforward(prefix, block.feedforward),
    ]
    for part, name in enumerate(("query", "key", "value")):
        named += projection(f"{prefix}/{name}", block.attention.qkv, part, block.attention.num_heads)
    return named


def feedforward(prefix: str, layers: nn.Module) -> list[Named]:
    inner, outer = (layer for layer in layers.children() if isinstance(layer, nn.Linear))
    return [*linear(f"{prefix}/mlp_fc1", inner), *linear(f"{prefix}/mlp_fc2", outer)]
