"""Time of a critic's update with other feed-forward layers, against the dense one: alternated, for one size of critic.

    python -m benchmarks.feedforward --hidden-dim 512 --batch 8

``critic``  forward and backward pass of the transformer critic, values and entropy, and AdamW's step
``layer``   forward and backward pass of one feed-forward layer over the same tokens

Structured layers stand in both blocks, unless a name ends in "after the first": as published, the first block then
keeps its dense layer. The critic's last block computes its feed-forward layer for the [VALUE] token alone, so that with
two blocks the published placement leaves nearly all of the layers' work dense.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import alternate, clock, machine, parser, prepare, show
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.feedforward import FeedForward
from tql_lightning.nn.rational import RationalFeedForward
from tql_lightning.nn.structured import BlockDenseLinear, BlockShuffleLinear, LowRankLinear, SelfGuide
from tql_lightning.nn.structured_feedforward import StructuredFeedForward
from tql_lightning.nn.transformer import TransformerBlock

Layer = Callable[[int, int, float], nn.Module]  # from (hidden_dim, inner_dim, dropout)
DENSE = "dense"
EVERYWHERE = partial(StructuredFeedForward, dense_blocks=0)
LAYERS: dict[str, Layer] = {
    DENSE: FeedForward,
    "low-rank 1/2": partial(EVERYWHERE, linear=partial(LowRankLinear, rank_ratio=1 / 2)),
    "low-rank 1/4": partial(EVERYWHERE, linear=partial(LowRankLinear, rank_ratio=1 / 4)),
    "low-rank 1/4 after the first": partial(StructuredFeedForward, linear=partial(LowRankLinear, rank_ratio=1 / 4)),
    "low-rank 1/4 guided": partial(
        EVERYWHERE, linear=partial(LowRankLinear, rank_ratio=1 / 4, guide=SelfGuide(1_000_000))
    ),
    "block-dense 1/3, 2 blocks": partial(EVERYWHERE, linear=partial(BlockDenseLinear, rank_ratio=1 / 3, num_blocks=2)),
    "block-shuffle, 4 blocks": partial(EVERYWHERE, linear=partial(BlockShuffleLinear, num_blocks=4)),
    "rational": RationalFeedForward,
}


def critic_update(
    feedforward: Callable[[int, int, float], nn.Module], options: argparse.Namespace
) -> Callable[[], None]:
    """One update of a critic on random pairs."""
    block = partial(TransformerBlock, feedforward=feedforward)
    critic = TransformerCritic(options.observation_dim, options.action_dim, options.hidden_dim, block=block)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-4)
    observations = torch.randn(options.batch, options.observation_dim)
    actions = torch.rand(options.batch, options.action_dim) * 2.0 - 1.0

    def update() -> None:
        optimizer.zero_grad()
        output = critic(observations, actions, with_entropy=True)
        assert output.attention_entropy is not None
        (output.values.square().mean() + output.attention_entropy.mean()).backward()
        optimizer.step()

    return update


def layer_passes(layer: nn.Module, tokens: Tensor) -> Callable[[], None]:
    """Forward and backward pass of a layer."""

    def passes() -> None:
        layer.zero_grad()
        layer(tokens).sum().backward()

    return passes


def main() -> None:
    """Prints times and ratios to the dense layer."""
    options = parser(__doc__, rounds=5, warmup=1)
    options.add_argument("--hidden-dim", type=int, default=256)
    options.add_argument("--observation-dim", type=int, default=37)
    options.add_argument("--action-dim", type=int, default=5)
    options.add_argument("--batch", type=int, default=8)
    chosen = options.parse_args()
    prepare(chosen)
    torch.manual_seed(0)
    device, size = torch.device(chosen.device), chosen.hidden_dim
    with device:
        tokens = torch.randn(chosen.batch, 1 + chosen.observation_dim + chosen.action_dim, size, requires_grad=True)
        made = {name: layer(size, 4 * size, 0.0) for name, layer in LAYERS.items() if "after" not in name}
        kinds = {
            "critic": {name: critic_update(layer, chosen) for name, layer in LAYERS.items()},
            "layer": {name: layer_passes(layer, tokens) for name, layer in made.items()},
        }
    fields: dict[str, object] = {"machine": machine(device), "hidden_dim": size, "batch": chosen.batch}
    dense = sum(p.numel() for p in made[DENSE].parameters())
    fields |= {f"weights {name}": sum(p.numel() for p in layer.parameters()) / dense for name, layer in made.items()}
    for kind, variants in kinds.items():
        comparison = alternate(variants, device, chosen.rounds, chosen.warmup, clock=clock(chosen))
        fields[f"{kind} {DENSE} s"] = comparison.median(DENSE)
        fields |= {f"{kind} {name}": comparison.ratio(name, DENSE) for name in variants if name != DENSE}
    show(fields, chosen.json)


if __name__ == "__main__":
    main()
