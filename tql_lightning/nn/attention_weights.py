"""Attention weights for whoever looks at a critic, recomputed from what its attention layers were given.

Plain mathematics on captured inputs, whatever way a layer computes them itself; nothing here is used in training.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.scalar_tokens import FactoredTokens, dense


@torch.no_grad()
def attention_log_weights(critic: nn.Module, observations: Tensor, actions: Tensor) -> list[Tensor]:
    """Logarithms of the softmax's weights of every attention layer, in the order that the layers are used.

    A weight transform (clipped softmax) and gates come after the softmax and do not show.

    Args:
        critic: in evaluation mode, so that nothing is drawn and no buffer moves.
        observations: (B, n_s).
        actions: (B, n_a).

    Returns:
        One (B, h, n, n) in float32 per layer, rows being queries; empty for a critic without `EntropyAttention`.
    """
    given: list[tuple[EntropyAttention, Tensor]] = []

    def capture(module: nn.Module, inputs: tuple[Tensor | FactoredTokens, ...]) -> None:
        assert isinstance(module, EntropyAttention)
        given.append((module, dense(inputs[0])))

    layers = [module for module in critic.modules() if isinstance(module, EntropyAttention)]
    hooks = [layer.register_forward_pre_hook(capture) for layer in layers]
    try:
        critic(observations, actions)
    finally:
        for hook in hooks:
            hook.remove()
    return [log_weights(layer, tokens) for layer, tokens in given]


def log_weights(layer: EntropyAttention, tokens: Tensor) -> Tensor:
    """What a layer's softmax gives for tokens (B, n, H), as logarithms, (B, h, n, n) in float32."""
    queries, keys, _ = rearrange(layer.qkv(tokens), "b n (s h e) -> s b h n e", s=3, h=layer.num_heads)
    if layer.query_norm is not None and layer.key_norm is not None:
        queries, keys = layer.query_norm(queries), layer.key_norm(keys)
    scores = at_least_float32(queries @ keys.transpose(-2, -1)) / math.sqrt(queries.shape[-1])
    if layer.score_transform is not None:
        scores = layer.score_transform(scores)
    logarithms: Tensor = scores.log_softmax(dim=-1)
    return logarithms


def head_entropies(logarithms: Tensor) -> Tensor:
    """Entropy in nats of every head by token group: log weights (B, h, n, n) -> (2, h), [VALUE] and the others.

    Means over batch and queries; the mean over heads is what the critic's ``attention_entropy`` holds.
    """
    per_query = -(logarithms.exp() * logarithms).sum(dim=-1).mean(dim=0)
    return torch.stack([per_query[:, 0], per_query[:, 1:].mean(dim=-1)])
