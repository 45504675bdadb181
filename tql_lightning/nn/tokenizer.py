"""Turns every scalar of an observation and of an action into one token (section 2 of docs/algorithm.md)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tql_lightning.nn.initialisation import lecun_normal_
from tql_lightning.nn.scalar_tokens import ScalarTokens

EMBEDDING_STD = 0.02


class ScalarTokenizer(nn.Module):
    """Tokens [VALUE; observation scalars; action scalars], n = 1 + n_s + n_a of size H.

    One Linear(1 -> H) is shared by all observation scalars and another by all action scalars; each group
    has a modality embedding, and every token but [VALUE] a learned position. Embeddings ~ N(0, 0.02^2).

    Args:
        observation_dim: n_s.
        action_dim: n_a.
        hidden_dim: H.
        modality_embeddings: Whether each of the two groups has a learned embedding added to its tokens.
    """

    def __init__(
        self, observation_dim: int, action_dim: int, hidden_dim: int, modality_embeddings: bool = True
    ) -> None:
        super().__init__()
        self.num_tokens = 1 + observation_dim + action_dim
        self.observation_projection = lecun_normal_(nn.Linear(1, hidden_dim))
        self.action_projection = lecun_normal_(nn.Linear(1, hidden_dim))
        self.value_token = _embedding(1, hidden_dim)
        self.position = _embedding(observation_dim + action_dim, hidden_dim)
        self.observation_modality = _embedding(1, hidden_dim) if modality_embeddings else None
        self.action_modality = _embedding(1, hidden_dim) if modality_embeddings else None

    def forward(self, observations: Tensor, actions: Tensor) -> ScalarTokens:
        """Turns (B, n_s) and (B, n_a) into n tokens of size H."""
        value = self.value_token
        projections = (self.observation_projection, self.action_projection)
        modalities = (self.observation_modality, self.action_modality)
        counts = (observations.shape[-1], actions.shape[-1])
        directions, offsets = [torch.zeros_like(value)], []
        for projection, modality, count in zip(projections, modalities, counts, strict=True):
            directions.append(projection.weight.flatten().expand(count, -1))
            offset = projection.bias if modality is None else projection.bias + modality
            offsets.append(offset.expand(count, -1))
        scalars = torch.cat([torch.zeros_like(observations[:, :1]), observations, actions], dim=-1)
        offsets_of_scalars = torch.cat(offsets) + self.position
        return ScalarTokens(scalars, torch.cat(directions), torch.cat([value, offsets_of_scalars]))


def _embedding(rows: int, hidden_dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, hidden_dim) * EMBEDDING_STD)
