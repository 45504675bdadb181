"""PAC's critic: its sizes, and the shortcuts it takes equal to the plain computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tql_lightning.nn.perceiver import PerceiverCritic


def small_critic() -> PerceiverCritic:
    torch.manual_seed(0)
    critic = PerceiverCritic(4, 3, hidden_dim=16, head_dim=8, num_latents=5)
    for parameter in critic.parameters():  # biases and norms away from where they change nothing
        nn.init.normal_(parameter, std=0.3)
    return critic


@pytest.mark.parametrize(
    ("hidden_dim", "published", "policy_head"),
    [(64, 284_106, 50_625), (128, 1_104_586, 199_553), (256, 4_355_274, 792_321), (512, 17_295_562, 3_157_505)],
)
def test_it_has_the_releases_size_without_the_policy_head(hidden_dim: int, published: int, policy_head: int) -> None:
    with torch.device("meta"):
        critic = PerceiverCritic(37, 5, hidden_dim, support=[float(i) for i in range(201)])
    assert sum(parameter.numel() for parameter in critic.parameters()) == published - policy_head


def test_the_action_query_equals_one_map_after_the_other() -> None:
    critic, actions = small_critic(), torch.rand(6, 3) * 2 - 1
    tokens = critic.action_projection(actions.unsqueeze(-1))
    expected = critic.action_norm(critic.action_mixer(tokens.flatten(1)))
    torch.testing.assert_close(critic.action_query(actions), expected, rtol=1e-4, atol=1e-5)


def test_latents_read_one_token_per_scalar_of_the_state() -> None:
    critic, observations = small_critic(), torch.randn(6, 4)
    tokens = critic.observation_projection(observations.unsqueeze(-1)) + critic.position
    latents = critic.encoder(critic.latents.expand(6, -1, -1), tokens)
    for block in critic.blocks:
        latents, _ = block(latents, value_only=False, with_entropy=False)
    torch.testing.assert_close(critic.encode(observations), critic.latent_norm(latents), rtol=1e-4, atol=1e-5)


def test_the_cross_block_equals_torchs_attention() -> None:
    block = small_critic().decoder
    theirs = nn.MultiheadAttention(16, 2, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([block.query.weight.data, block.key_value.weight.data])
    theirs.in_proj_bias.data = torch.cat([block.query.bias.data, block.key_value.bias.data])
    theirs.out_proj.load_state_dict(block.out.state_dict())
    tokens, context = torch.randn(6, 2, 16), torch.randn(6, 5, 16)
    read = block.context_norm(context)
    expected = tokens + theirs(block.query_norm(tokens), read, read, need_weights=False)[0]
    expected = expected + block.feedforward(block.feedforward_norm(expected))
    torch.testing.assert_close(block(tokens, context), expected, rtol=1e-4, atol=1e-5)


def test_matrices_and_positions_decay_and_latents_do_not() -> None:
    critic = small_critic()
    decayed = {name for name, parameter in critic.named_parameters() if critic.decays(name, parameter)}
    assert {"position", "observation_projection.weight", "action_projection.weight", "head.3.weight"} <= decayed
    rest = {name for name, _ in critic.named_parameters()} - decayed
    assert all(name == "latents" or name.endswith("bias") or "norm" in name or name == "head.0.weight" for name in rest)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_latents": 0}, "critic.num_latents: expected at least 1, found 0"),
        ({"hidden_dim": 48}, "critic.hidden_dim: expected a multiple of head_dim=32, found 48"),
        ({"hidden_dim": 1, "head_dim": 1}, "critic.hidden_dim: expected at least 2, found 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerceiverCritic(4, 3, **settings)
