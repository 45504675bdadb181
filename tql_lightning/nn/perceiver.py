"""Perceiver critic: latents read the state, the action reads the latents (PAC, arXiv 2402.05546)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import linear

from tql_lightning.nn.attention import plain_attention
from tql_lightning.nn.critic import Bins, Critic, CriticOutput
from tql_lightning.nn.feedforward import FeedForward
from tql_lightning.nn.initialisation import LayerNorm, StackedLinear, lecun_normal_
from tql_lightning.nn.scalar_tokens import FactoredTokens, ScalarTokens, normalise
from tql_lightning.nn.sizes import require_heads, require_sizes
from tql_lightning.nn.tokenizer import EMBEDDING_STD
from tql_lightning.nn.transformer import TransformerBlock


class CrossBlock(nn.Module):
    """x + attention(norm x, norm context), then x + feedforward(norm x).

    Args:
        hidden_dim: H.
        num_heads: h.
        inner_dim: Width of the feed-forward layer.
    """

    def __init__(self, hidden_dim: int, num_heads: int, inner_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_norm, self.context_norm = LayerNorm(hidden_dim), LayerNorm(hidden_dim)
        self.query = lecun_normal_(nn.Linear(hidden_dim, hidden_dim))
        self.key_value = lecun_normal_(StackedLinear(hidden_dim, hidden_dim, stacked=2))
        self.out = lecun_normal_(nn.Linear(hidden_dim, hidden_dim))
        self.feedforward_norm = LayerNorm(hidden_dim)
        self.feedforward = FeedForward(hidden_dim, inner_dim, dropout=0.0)

    def forward(self, tokens: Tensor, context: Tensor | ScalarTokens) -> Tensor:
        """Lets tokens attend to a context.

        Args:
            tokens: (B, m, H), or (1, m, H) if all rows of the batch share them.
            context: (B, n, H).

        Returns:
            (B, m, H).
        """
        read = normalise(self.context_norm, context)
        weight, bias = self.key_value.weight, self.key_value.bias
        projected = read.linear(weight, bias) if isinstance(read, FactoredTokens) else linear(read, weight, bias)
        keys, values = rearrange(projected, "b n (s h e) -> s b h n e", s=2, h=self.num_heads)
        queries = rearrange(self.query(self.query_norm(tokens)), "b m (h e) -> b h m e", h=self.num_heads)
        attended, _ = plain_attention(queries, keys, values, num_attended=queries.shape[2], with_entropy=False)
        tokens = tokens + self.out(rearrange(attended, "b h m e -> b m (h e)"))
        output: Tensor = tokens + self.feedforward(self.feedforward_norm(tokens))
        return output


class PerceiverCritic(Critic):
    """PAC's critic: learned latents attend to one token per scalar of s; one query made from a attends to the latents.

    It has one head and no ensemble. PAC trains it with ``CategoricalProjection``: values are means over the atoms.
    The deterministic policy head of the release is left out: its gradient is 0.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a (taken from the dataset by the CLI).
        hidden_dim: H, a multiple of ``head_dim``.
        num_latents: P, number of latents that encode the state.
        num_layers: Number of self-attention blocks over the latents.
        head_dim: Size of an attention head.
        mlp_ratio: Width of the feed-forward layers over ``hidden_dim``.
        support: Centres of the bins (given by the model's ``value_loss``); null for a critic without bins.

    Raises:
        ValueError: A size is not positive, or ``hidden_dim`` is below 2 or not a multiple of ``head_dim``.

    Examples:
        >>> critic = PerceiverCritic(3, 1, num_latents=4)
        >>> critic(torch.zeros(5, 3), torch.zeros(5, 1)).values.shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dim: int = 64,
        num_latents: int = 16,
        num_layers: int = 2,
        head_dim: int = 32,
        mlp_ratio: int = 4,
        support: list[float] | None = None,
    ) -> None:
        super().__init__()
        require_sizes("critic", observation_dim=observation_dim, action_dim=action_dim, num_latents=num_latents)
        require_sizes("critic", head_dim=head_dim, mlp_ratio=mlp_ratio)
        require_sizes("critic", least=2, hidden_dim=hidden_dim)
        require_sizes("critic", least=0, num_layers=num_layers)
        require_heads(hidden_dim, head_dim)
        num_heads, inner_dim = hidden_dim // head_dim, mlp_ratio * hidden_dim
        self.observation_projection = lecun_normal_(nn.Linear(1, hidden_dim))
        self.position = nn.Parameter(torch.randn(observation_dim, hidden_dim) * EMBEDDING_STD)
        self.latents = nn.Parameter(torch.randn(num_latents, hidden_dim) * EMBEDDING_STD)
        self.encoder = CrossBlock(hidden_dim, num_heads, inner_dim)
        self.blocks = nn.ModuleList(TransformerBlock(hidden_dim, num_heads, inner_dim, 0.0) for _ in range(num_layers))
        self.latent_norm = LayerNorm(hidden_dim)
        self.action_projection = lecun_normal_(nn.Linear(1, hidden_dim))
        self.action_mixer = lecun_normal_(nn.Linear(action_dim * hidden_dim, hidden_dim))
        self.action_norm = LayerNorm(hidden_dim)
        self.decoder = CrossBlock(hidden_dim, num_heads, inner_dim)
        self.bins = Bins(support)
        self.head = nn.Sequential(
            LayerNorm(hidden_dim),
            lecun_normal_(nn.Linear(hidden_dim, hidden_dim // 2)),
            nn.GELU(approximate="tanh"),
            lecun_normal_(nn.Linear(hidden_dim // 2, self.bins.num_outputs)),
        )

    def forward(self, observations: Tensor, actions: Tensor, *, with_entropy: bool = False) -> CriticOutput:
        """See `Critic.forward`; values (B, 1), no attention entropy."""
        del with_entropy
        query = self.action_query(actions).unsqueeze(1)
        read = self.decoder(query, self.encode(observations)).squeeze(1)
        output: CriticOutput = self.bins(self.head(read).unsqueeze(1), None)
        return output

    def encode(self, observations: Tensor) -> Tensor:
        """Computes the latents after attention to the state, (B, n_s) -> (B, P, H)."""
        projection = self.observation_projection
        directions = projection.weight.flatten().expand(observations.shape[-1], -1)
        tokens = ScalarTokens(observations, directions, projection.bias + self.position)
        latents: Tensor = self.encoder(self.latents.unsqueeze(0), tokens)
        for block in self.blocks:
            latents, _ = block(latents, value_only=False, with_entropy=False)
        normalised: Tensor = self.latent_norm(latents)
        return normalised

    def action_query(self, actions: Tensor) -> Tensor:
        """Computes the query of an action, (B, n_a) -> (B, H).

        The projection of every scalar and the mixer of all of them are linear, with nothing between them. Their weights
        are multiplied first, which is exact up to rounding.
        """
        mixer = rearrange(self.action_mixer.weight, "o (a i) -> o a i", a=actions.shape[-1])
        weight = mixer @ self.action_projection.weight.flatten()
        bias = self.action_mixer.bias + mixer.sum(dim=1) @ self.action_projection.bias
        query: Tensor = self.action_norm(linear(actions, weight, bias))
        return query

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Decays matrices and positions but not the latents, as in the release."""
        return parameter.ndim > 1 and name != "latents"
