"""Q-Transformer as TQL's authors run it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.golden_methods.arrays import Arrays, Named, kernel, plain
from tests.golden_methods.bases import Method, largest
from tql_lightning.algorithms.q_transformer import NextValue, QTransformer, Returns
from tql_lightning.nn.autoregressive import AutoregressiveCritic, CausalBlock
from tql_lightning.nn.layer_temperature import LayerTemperature
from tql_lightning.training.optimisation import Optimisation
from tql_lightning.training.problem import Problem

NEXT_VALUE: dict[str, NextValue] = {
    "one_step": "first_dimension",
    "action_dim_n_step_greedy": "greedy",
    "action_dim_n_step_argmax_rollout": "next_action",
    "action_dim_n_step_sarsa": "sarsa",
}


class QTransformerGolden(Method):
    noise = {}  # noqa: RUF012
    total = "info/critic/loss"
    acting_after = 5

    @property
    def no_gradient(self) -> tuple[str, ...]:  # type: ignore[override]
        """Softmax ignores what all scores of a query have in common, which a key's bias is without QK-norm."""
        return () if self.config["use_qk_norm"] else ("key/bias",)

    @property
    def constants(self) -> dict[str, float]:  # type: ignore[override]
        """Bounds of values, and how rewards are scaled."""
        low, high = self.config["reward_min"], self.config["reward_max"]
        sparse = self.config["sparse"]
        return {
            "critic/q_min": 0.0,
            "critic/q_max": 1.0,
            "critic/raw_reward_min": low,
            "critic/raw_reward_max": high,
            "critic/reward_shift": 0.0 if sparse else low,
            "critic/reward_scale": 1.0 if sparse else (1.0 - self.config["discount"]) / (high - low),
        }

    @property
    def metrics(self) -> dict[str, str]:  # type: ignore[override]
        control = {
            "critic/attention_entropy_loss": "entropy_loss",
            "critic/attention_entropy_temperature_loss": "temperature_loss",
        }
        for layer in range(self.config["depth"]):
            control[f"critic/attention_entropy_mean_layer_{layer}"] = f"attention_entropy/layer_{layer}"
            control[f"critic/attention_entropy_temperature_layer_{layer}"] = f"temperature/layer_{layer}"
        return {
            "critic/loss": "critic_loss",
            "critic/td_loss": "td_loss",
            "critic/conservative_loss": "conservative_loss",
            "critic/q_pred_mean": "q_mean",
            "critic/q_targ_mean": "target_q_mean",
            "critic/q_targ_min": "target_q_min",
            "critic/q_targ_max": "target_q_max",
        } | (control if self.config["use_attention_entropy_loss"] else {})

    def build(self) -> QTransformer:
        config = self.config
        critic = partial(
            AutoregressiveCritic,
            num_bins=config["action_bins"],
            hidden_dim=config["hidden_dim"],
            num_layers=config["depth"],
            head_dim=config["hidden_dim"] // config["num_heads"],
            mlp_ratio=config["mlp_ratio"],
            layer_norm=config["layer_norm"],
            final_norm=config["final_layer_norm"],
            query_key_norm=config["use_qk_norm"],
            state_tokens="each" if config["use_state_tokens_per_dim"] else "one",
            modality_embeddings=config["use_modality_embeddings"],
            initial_logit=config["init_logit"],
        )
        entropy_control = partial(
            LayerTemperature,
            targets=config["attention_entropy_target"],
            normalize=config["attention_entropy_normalize"],
            initial=config["attention_entropy_temperature_init"],
            minimum=config["attention_entropy_temperature_min"],
            maximum=config["attention_entropy_temperature_max"],
        )
        return QTransformer(
            self.observation_dim,
            self.action_dim,
            critic=critic,
            action_range=(config["action_low"], config["action_high"]),
            entropy_control=entropy_control if config["use_attention_entropy_loss"] else None,
            problem=Problem(reward_range=(config["reward_min"], config["reward_max"])),
            discount=config["discount"],
            tau=config["tau"],
            next_value=NEXT_VALUE[config["target_bootstrap"]],
            conservative_weight=config["conservative_weight"],
            returns=Returns(config["sparse"], config["use_mc_return"], config["clip_q_target"], release_returns=True),
            optimisation=Optimisation(
                learning_rate=config["lr"],
                weight_decay=config["adamw_weight_decay"] if config["optimizer"] == "adamw" else 0.0,
                lr_schedule="warmup_cosine",
                warmup_updates=config["warmup_steps"],
                schedule_updates=config["train_steps"],
                gradient_clip_norm=config["max_grad_norm"],
            ),
        )

    def batch(self, model: Any, arrays: dict[str, Tensor]) -> Any:
        """The release's returns need no remainders after a cut, and it takes the next row's action for the next one."""
        returns = arrays["mc_returns"]
        own = {
            "monte_carlo_returns": returns,
            "monte_carlo_remainders": torch.full_like(returns, torch.nan),
            "next_action_known": torch.ones_like(returns),
        }
        return super().batch(model, arrays | own)

    def named(self, model: Any) -> list[Named]:
        temperature = model.temperature
        return [
            *autoregressive_critic("critic", model.network),
            *autoregressive_critic("target_critic", model.target_network),
            *([] if temperature is None else [plain("attention_entropy_temperature/raw", temperature.raw)]),
        ]

    def forward(self, model: Any, batch: Any, noise: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
        bins = model.bins(batch.actions)
        found = {
            "action_bins": bins,
            "q_logits": model.network(batch.observations, bins).logits,
            "target_q_logits": model.target_network(batch.observations, bins).logits,
            "q_target": model.targets(batch, bins),
        }
        following = self.next_bins(model, batch)
        found["target_next_q_logits"] = model.target_network(batch.next_observations, following).logits
        if model.next_value != "first_dimension":
            found["next_action_bins"] = following
        if model.temperature is not None:
            found["attention_weights_first4"] = attention_weights(model.network, batch.observations[:4], bins[:4])
        return found

    @staticmethod
    def next_bins(model: Any, batch: Any) -> Tensor:
        """The prefix at the next state; bins that the release has not filled are 0."""
        chosen = model.target_network(batch.next_observations).bins
        if model.next_value == "first_dimension":
            return torch.zeros_like(chosen)
        if model.next_value == "greedy":
            return torch.cat([chosen[:, :-1], torch.zeros_like(chosen[:, -1:])], dim=-1)
        bins: Tensor = model.bins(batch.next_actions)
        return bins

    def acting(self, model: Any, act: dict[str, Tensor]) -> dict[str, Any]:
        observations = act["observations"]
        noise = torch.zeros(len(observations), model.action_dim)
        return {
            "actions": model.actor().act(observations, noise),
            "single": model.actor().act(observations[:1], noise[:1])[0],
            "bins": model.network(observations).bins,
        }

    def scales(self, core: Arrays) -> dict[str, float]:
        found = {}
        if self.config["use_attention_entropy_loss"]:
            found["critic/loss"] = largest(core["info/critic/attention_entropy_loss"])
        return found


def attention_weights(network: AutoregressiveCritic, observations: Tensor, bins: Tensor) -> Tensor:
    """Weights of every layer, (L, B, h, n, n)."""
    tokens = torch.cat([network._first_tokens(observations), *network._chosen_tokens(bins)], dim=1)
    size, weights = tokens.shape[1], []
    for block in network.blocks:
        assert isinstance(block, CausalBlock)
        projected = block.qkv(block.attention_norm(tokens)).unflatten(-1, (3, block.num_heads, -1))
        queries, keys = projected[..., 0, :, :].transpose(1, 2), projected[..., 1, :, :].transpose(1, 2)
        scores = block.query_norm(queries) @ block.key_norm(keys).mT / queries.shape[-1] ** 0.5
        hidden = torch.ones(size, size, dtype=torch.bool).triu(1)
        weights.append(scores.masked_fill(hidden, -torch.inf).softmax(dim=-1))
        tokens = block(tokens)[0]
    return torch.stack(weights)


def autoregressive_critic(prefix: str, critic: AutoregressiveCritic) -> list[Named]:
    """State projection, tables, blocks and final norm."""
    head = f"{prefix}/head"
    tables = {
        "start_token": critic.start,
        "action_in_embed": critic.chosen,
        "pos_embed": critic.position,
        "action_out_embed": critic.output,
        "action_out_bias": critic.output_bias,
        "state_type_embed": critic.state_modality,
        "action_type_embed": critic.action_modality,
    }
    return [
        *linear(f"{prefix}/obs_proj", critic.state_projection),
        *(plain(f"{head}/{name}", table) for name, table in tables.items() if table is not None),
        *(entry for i, block in enumerate(critic.blocks) for entry in causal_block(f"{head}/block_{i}", block)),
        *norm(f"{head}/final_ln", critic.final_norm),
    ]


def causal_block(prefix: str, block: nn.Module) -> list[Named]:
    assert isinstance(block, CausalBlock)
    attention = f"{prefix}/SelfAttention_0"
    named = [
        *norm(f"{prefix}/LayerNorm_0", block.attention_norm),
        *norm(f"{prefix}/LayerNorm_1", block.feedforward_norm),
    ]
    for part, name in enumerate(("query", "key", "value")):
        named += projection(f"{attention}/{name}", block.qkv, part, block.num_heads)
    heads = block.num_heads
    named.append(
        Named(
            f"{attention}/out/kernel",
            [block.out.weight],
            lambda values: values[0].T.reshape(heads, -1, len(values[0])),
            lambda own, array: own[0].copy_(array.reshape(-1, array.shape[-1]).T),
        )
    )
    named.append(plain(f"{attention}/out/bias", block.out.bias))
    for name, own in (("q_norm", block.query_norm), ("k_norm", block.key_norm)):
        if isinstance(own, nn.RMSNorm):
            named.append(plain(f"{attention}/{name}/scale", own.weight))
    for index, layer in enumerate(part for part in block.feedforward if isinstance(part, nn.Linear)):
        named += linear(f"{prefix}/Dense_{index}", layer)
    return named


def linear(prefix: str, layer: nn.Linear) -> list[Named]:
    return [kernel(f"{prefix}/kernel", layer.weight), plain(f"{prefix}/bias", layer.bias)]


def norm(prefix: str, layer: nn.Module) -> list[Named]:
    if not isinstance(layer, nn.LayerNorm):
        return []
    return [plain(f"{prefix}/scale", layer.weight), plain(f"{prefix}/bias", layer.bias)]


def projection(prefix: str, stacked: nn.Linear, part: int, heads: int) -> list[Named]:
    """One of several maps in one matrix: rows (H, in) of it <-> the release's (in, h, e)."""
    size = stacked.in_features
    rows = slice(part * size, (part + 1) * size)
    return [
        Named(
            f"{prefix}/kernel",
            [stacked.weight],
            lambda values: values[0][rows].T.reshape(size, heads, -1),
            lambda own, array: own[0][rows].copy_(array.reshape(size, -1).T),
        ),
        Named(
            f"{prefix}/bias",
            [stacked.bias],
            lambda values: values[0][rows].reshape(heads, -1),
            lambda own, array: own[0][rows].copy_(array.reshape(-1)),
        ),
    ]
