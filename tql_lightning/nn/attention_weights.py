"""Attention weights of a critic, recomputed from the captured inputs of its attention layers.

They follow the plain formula, whichever implementation a layer uses. Training uses nothing here.
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
    """Computes the logarithms of every attention layer's softmax, in the order in which the layers run.

    Weight transforms (clipped softmax) and gates act after the softmax and are not included.

    Args:
        critic: Critic in evaluation mode, so that nothing is sampled and no buffer changes.
        observations: (B, n_s).
        actions: (B, n_a).

    Returns:
        One (B, h, n, n) in float32 per layer, with queries as rows; empty for a critic without `EntropyAttention`.
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
    """Computes the logarithms of a layer's softmax for tokens (B, n, H): (B, h, n, n) in float32."""
    queries, keys, _ = rearrange(layer.qkv(tokens), "b n (s h e) -> s b h n e", s=3, h=layer.num_heads)
    if layer.query_norm is not None and layer.key_norm is not None:
        queries, keys = layer.query_norm(queries), layer.key_norm(keys)
    scores = at_least_float32(queries @ keys.transpose(-2, -1)) / math.sqrt(queries.shape[-1])
    if layer.score_transform is not None:
        scores = layer.score_transform(scores)
    logarithms: Tensor = scores.log_softmax(dim=-1)
    return logarithms


def head_entropies(logarithms: Tensor) -> Tensor:
    """Computes each head's entropy in nats by token group, [VALUE] and others: log weights (B, h, n, n) -> (2, h).

    Averages over batch and queries. The mean over heads equals the critic's ``attention_entropy``.
    """
    per_query = -(logarithms.exp() * logarithms).sum(dim=-1).mean(dim=0)
    return torch.stack([per_query[:, 0], per_query[:, 1:].mean(dim=-1)])
