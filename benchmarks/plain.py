"""The same update, plainly: what a competent reader of the paper would write in PyTorch. What ours is compared with.

Query, key and value are linear layers of their own, every pass computes every token of every block, attention entropy
is taken from log A by a second pass (A clipped at 1e-9, as in the authors' release), and critic and actor have an
optimizer each, as in SAC: what the actor's loss leaves in the critic's gradients is thrown away by ``zero_grad``.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tql_lightning.algorithms.tql import TQL, TQLNoise
from tql_lightning.batch import Batch
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.temperature import AttentionTemperature


class Attention(nn.Module):
    """Multi-head self-attention and its entropy."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key = nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim)
        self.value, self.out = nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim)

    def forward(self, tokens: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """(B, n, H) -> (B, n, H) and, if wanted, entropies (B, h, n)."""
        queries, keys, values = (self.split(layer(tokens)) for layer in (self.query, self.key, self.value))
        weights = (queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])).softmax(dim=-1)
        entropy = -(weights * weights.clamp(min=1e-9).log()).sum(dim=-1) if with_entropy else None
        return self.out((weights @ values).transpose(1, 2).flatten(2)), entropy

    def split(self, projected: Tensor) -> Tensor:
        """(B, n, H) -> (B, h, n, e)."""
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, hidden_dim: int, num_heads: int, inner_dim: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.attention = Attention(hidden_dim, num_heads)
        self.feedforward_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.feedforward = nn.Sequential(
            nn.Linear(hidden_dim, inner_dim),
            nn.GELU(approximate="tanh"),
            nn.Dropout(0.0),
            nn.Linear(inner_dim, hidden_dim),
            nn.Dropout(0.0),
        )

    def forward(self, tokens: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """(B, n, H) -> (B, n, H) and, if wanted, entropies (B, h, n)."""
        attended, entropy = self.attention(self.attention_norm(tokens), with_entropy)
        tokens = tokens + attended
        return tokens + self.feedforward(self.feedforward_norm(tokens)), entropy


class Critic(nn.Module):
    """Transformer critic; parts and parameters are named as those of ours."""

    def __init__(self, like: TransformerCritic) -> None:
        super().__init__()
        self.tokenizer = copy.deepcopy(like.tokenizer)
        hidden_dim = like.tokenizer.value_token.shape[-1]
        block = like.transformer.blocks[0]
        sizes = (hidden_dim, block.attention.num_heads, block.feedforward[0].out_features)
        self.transformer = nn.Module()
        self.transformer.blocks = nn.ModuleList(Block(*sizes) for _ in like.transformer.blocks)
        self.transformer.final_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden_dim, hidden_dim // 2), nn.ReLU(), nn.Linear(hidden_dim // 2, 1))
            for _ in like.heads
        )

    def forward(self, observations: Tensor, actions: Tensor, with_entropy: bool = False) -> tuple[Tensor, Tensor]:
        """Values (B, E) and the attention entropy (L, 2); empty where it is not wanted."""
        tokens = self.tokenize(observations, actions)
        entropies = []
        for block in self.transformer.blocks:  # type: ignore[union-attr]
            tokens, entropy = block(tokens, with_entropy)
            if with_entropy:
                entropies.append(torch.stack([entropy[:, :, 0].mean(), entropy[:, :, 1:].mean()]))
        value = self.transformer.final_norm(tokens)[:, 0]  # type: ignore[operator]
        values = torch.cat([head(value) for head in self.heads], dim=-1)
        return values, torch.stack(entropies) if entropies else torch.empty(0)

    def tokenize(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, n_s), (B, n_a) -> (B, n, H)."""
        parts = self.tokenizer
        states = parts.observation_projection(observations.unsqueeze(-1)) + parts.observation_modality
        acts = parts.action_projection(actions.unsqueeze(-1)) + parts.action_modality
        scalars = torch.cat([states, acts], dim=1) + parts.position
        return torch.cat([parts.value_token.expand(len(observations), 1, -1), scalars], dim=1)


class PlainTQL(nn.Module):
    """The update of a `TQL` of the release's settings, starting from the same weights.

    Args:
        like: the model whose weights and settings are taken; a plain transformer critic with learned temperatures,
            squared error and a flow policy.
    """

    def __init__(self, like: TQL) -> None:
        super().__init__()
        assert isinstance(like.critic, TransformerCritic)
        assert isinstance(like.temperature, AttentionTemperature)
        self.critic = Critic(like.critic)
        self.policy = copy.deepcopy(like.policy)
        self.log_temperature = nn.Parameter(like.temperature.raw.detach().clone())
        self.targets = like.temperature.targets.clone()
        self.discount, self.tau, self.bc_coefficient = like.discount, like.tau, like.bc_coefficient
        self.load(like.critic)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        matrices = [p for n, p in self.critic.named_parameters() if p.ndim > 1 and not n.startswith("tokenizer.")]
        chosen = {id(parameter) for parameter in matrices}
        rest = [p for p in self.critic.parameters() if id(p) not in chosen] + [self.log_temperature]
        decay, rate = like.optimisation.weight_decay, like.optimisation.peak("critic")
        self.critic_optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}], lr=rate
        )
        matrices = [parameter for parameter in self.policy.parameters() if parameter.ndim > 1]
        rest = [parameter for parameter in self.policy.parameters() if parameter.ndim == 1]
        self.actor_optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}],
            lr=like.optimisation.peak("actor"),
        )

    def load(self, critic: TransformerCritic) -> None:
        """Takes the weights of a critic of ours."""
        self.critic.load_state_dict(separate_qkv(critic.state_dict()))

    def losses(self, batch: Batch, noise: TQLNoise) -> tuple[Tensor, Tensor]:
        """The critic's and the actor's loss."""
        with torch.no_grad():
            next_actions = self.one_step(batch.next_observations, noise.next_action).clamp(-1, 1)
            next_values = self.target_critic(batch.next_observations, next_actions)[0].mean(dim=-1)
            target = batch.rewards + self.discount * batch.masks * next_values
        values, entropy = self.critic(batch.observations, batch.actions, with_entropy=True)
        temperature = self.log_temperature.exp()
        critic_loss = (
            functional.mse_loss(values, target.unsqueeze(-1).expand_as(values))
            - (temperature.detach().clamp(-100, 100) * entropy).mean()
            + (temperature * (entropy.detach() - self.targets)).mean()
        )

        x_t = (1 - noise.flow_t) * noise.flow_x0 + noise.flow_t * batch.actions
        velocity = self.velocity(batch.observations, x_t, noise.flow_t)
        flow_loss = functional.mse_loss(velocity, batch.actions - noise.flow_x0)
        with torch.no_grad():
            teacher = self.flow(batch.observations, noise.distillation)
        student = self.one_step(batch.observations, noise.distillation)
        distillation_loss = functional.mse_loss(student, teacher)
        q_loss = -self.critic(batch.observations, student.clamp(-1, 1))[0].mean()
        return critic_loss, flow_loss + self.bc_coefficient * distillation_loss + q_loss

    def velocity(self, observations: Tensor, actions: Tensor, t: Tensor) -> Tensor:
        """The behaviour flow's velocity, (B, n_a)."""
        velocity: Tensor = self.policy.behaviour_flow(torch.cat([observations, actions, t], dim=-1))
        return velocity

    def flow(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The behaviour flow's action, (B, n_a)."""
        actions, steps = noise, self.policy.flow_steps
        for step in range(steps):
            t = torch.full_like(noise[:, :1], step / steps)
            actions = actions + self.velocity(observations, actions, t) / steps
        return actions.clamp(-1, 1)

    def one_step(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The one-step policy's action, not clipped, (B, n_a)."""
        actions: Tensor = self.policy.one_step_policy(torch.cat([observations, noise], dim=-1))
        return actions

    def backward(self, batch: Batch, noise: TQLNoise) -> Tensor:
        """Leaves the gradients of both losses; returns their sum."""
        critic_loss, actor_loss = self.losses(batch, noise)
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        return critic_loss.detach() + actor_loss.detach()

    def update(self, batch: Batch, noise: TQLNoise) -> Tensor:
        """One update; returns the summed loss."""
        loss = self.backward(batch, noise)
        with torch.no_grad():
            for target, online in zip(self.target_critic.parameters(), self.critic.parameters(), strict=True):
                target.mul_(1 - self.tau).add_(self.tau * online)
        self.critic_optimizer.step()
        self.actor_optimizer.step()
        return loss


def separate_qkv(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our critic's tensors by name -> the plain critic's, whose query, key and value are layers of their own."""
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".qkv." not in name:
            separate[name] = tensor
            continue
        for layer, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            separate[name.replace(".qkv.", f".{layer}.")] = part
    return separate
