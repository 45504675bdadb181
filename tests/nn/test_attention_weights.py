"""Attention weights recomputed from what the layers were given."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.attention_components import SoftCap
from tql_lightning.nn.attention_weights import attention_log_weights, head_entropies
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.transformer import TransformerBlock


def parts() -> partial[EntropyAttention]:
    return partial(EntropyAttention, query_key_norm=nn.RMSNorm, score_transform=SoftCap(2.0))


@pytest.mark.parametrize("attention", [EntropyAttention, parts()])
def test_entropies_by_head_average_to_what_the_critic_reports(attention: type[EntropyAttention]) -> None:
    torch.manual_seed(0)
    block = partial(TransformerBlock, attention=attention)
    critic = TransformerCritic(3, 2, hidden_dim=32, head_dim=8, num_layers=3, block=block).eval()
    observations, actions = torch.randn(7, 3) * 5.0, torch.rand(7, 2)
    reported = critic(observations, actions, with_entropy=True).attention_entropy
    layers = attention_log_weights(critic, observations, actions)
    assert [layer.shape for layer in layers] == [(7, 4, 6, 6)] * 3
    torch.testing.assert_close(torch.stack([head_entropies(layer).mean(dim=-1) for layer in layers]), reported)
    torch.testing.assert_close(layers[0].exp().sum(dim=-1), torch.ones(7, 4, 6))
    assert head_entropies(layers[0]).std(dim=-1).min() > 0.0
    assert not any(module._forward_pre_hooks for module in critic.modules())


def test_weights_give_the_output_of_the_layer() -> None:
    torch.manual_seed(0)
    layer = EntropyAttention(16, 2)
    tokens = torch.randn(2, 5, 16)
    critic = nn.Sequential(layer)
    critic.forward = lambda tokens, _: layer(tokens)  # type: ignore[method-assign]
    (logarithms,) = attention_log_weights(critic, tokens, tokens)
    values = layer.qkv(tokens)[..., 32:].view(2, 5, 2, 8).transpose(1, 2)
    expected = layer.out((logarithms.exp() @ values).transpose(1, 2).reshape(2, 5, 16))
    torch.testing.assert_close(layer(tokens)[0], expected)


def test_a_critic_without_attention_has_none() -> None:
    assert attention_log_weights(MLPCritic(3, 1, hidden_dims=(8,)), torch.zeros(2, 3), torch.zeros(2, 1)) == []
