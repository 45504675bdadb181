"""Structured linear maps and their feed-forward layers, against the authors' numbers and against dense layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.toy import fit, toy_model
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.export.writer import export_checkpoint
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.feedforward import FeedForward, SwiGLU
from tql_lightning.nn.structured import (
    BlockDenseLinear,
    BlockShuffleLinear,
    LowRankLinear,
    SelfGuide,
    StructuredLinear,
    advance_guides,
    guided_layers,
    merge_structured,
    spectral_factors,
)
from tql_lightning.nn.structured_feedforward import StructuredFeedForward, StructuredSwiGLU
from tql_lightning.nn.transformer import TransformerBlock

GOLDEN = np.load(Path(__file__).parents[1] / "golden_seeds" / "structured.npz")
KINDS: dict[str, Callable[..., StructuredLinear]] = {
    "low_rank": partial(LowRankLinear, rank_ratio=0.5),
    "block_dense": partial(BlockDenseLinear, rank_ratio=0.5, num_blocks=2),
    "block_shuffle": partial(BlockShuffleLinear, num_blocks=2),
}
NAMES = {  # the release's names of both factors
    "low_rank": ("lr1", "lr2"),
    "block_dense": ("blkdiag", "lr"),
    "block_shuffle": ("blkdiag1", "blkdiag2"),
}
GUIDE = SelfGuide(updates=4, form="linear")


def golden(name: str) -> Tensor:
    return torch.tensor(GOLDEN[name], dtype=torch.float64)


def difference(ours: Tensor | None, theirs: Tensor) -> float:
    """Largest difference over the largest entry."""
    assert ours is not None
    assert ours.shape == theirs.shape
    return float((ours.detach().double() - theirs).abs().max() / theirs.abs().max())


def named(kind: str, layer: StructuredLinear) -> dict[str, nn.Parameter]:
    """Parameters by the release's names."""
    names = dict(zip(("first", "second"), NAMES[kind], strict=True)) | {"bias": "bias", "guide": "guide_linear"}
    return {names[name]: parameter for name, parameter in layer.named_parameters()}


def load(kind: str, layer: StructuredLinear, prefix: str) -> None:
    for name, parameter in named(kind, layer).items():
        parameter.data.copy_(golden(f"{prefix}/{name}"))


def num_weights(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if "bias" not in name and "guide" not in name)


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_factors_stand_for_the_authors_dense_matrices(kind: str) -> None:
    for name, sizes in {"fc1": (16, 64), "fc2": (64, 16)}.items():
        layer = KINDS[kind](*sizes).double()
        load(kind, layer, f"{kind}/init/{name}")
        assert difference(layer.matrix(), golden(f"{kind}/init/{name}/dense")) < 1e-6


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_has_the_authors_outputs_and_gradients(kind: str, guided: bool) -> None:
    linear = partial(KINDS[kind], guide=SelfGuide(10) if guided else None)
    layer = StructuredFeedForward(16, 64, 0.0, linear).double()
    prefix = f"{kind}/guided" if guided else kind
    layers = {"fc1": layer.up, "fc2": layer.down}
    for name, each in layers.items():
        load(kind, each, f"{prefix}/param/{name}")
    if guided:
        for _ in range(3):
            advance_guides(guided_layers(layer))
        assert difference(layer.up.guide_share(), golden(f"{prefix}/ratio")) < 1e-6
    x = golden("x").requires_grad_()
    output = layer(x)
    output.backward(golden("grad_y"))
    assert difference(layer.up(x) - layer.up.bias, golden(f"{prefix}/fc1")) < 1e-6
    assert difference(output, golden(f"{prefix}/y")) < 1e-6
    assert difference(x.grad, golden(f"{prefix}/grad/x")) < 1e-6
    for name, each in layers.items():
        for own_name, parameter in named(kind, each).items():
            assert difference(parameter.grad, golden(f"{prefix}/grad/{name}/{own_name}")) < 1e-6, (name, own_name)
    assert num_weights(layer) == int(GOLDEN[f"{prefix}/num_weights"])


@pytest.mark.parametrize("form", ["linear", "cosine"])
def test_the_guides_share_falls_as_the_authors(form: str) -> None:
    guide = SelfGuide(10, form)  # type: ignore[arg-type]
    shares = torch.stack([guide.share(torch.tensor(updates)) for updates in range(13)])
    torch.testing.assert_close(shares, torch.tensor(GOLDEN[f"ratio/{form}"]), rtol=1e-6, atol=1e-7)
    assert shares[10:].tolist() == [0.0, 0.0, 0.0]


def test_spectral_factors_are_balanced_and_the_best_approximation() -> None:
    matrix, product = golden("spectral/W"), golden("spectral/product")
    first, second = spectral_factors(matrix, 8)
    assert difference(second @ first, product) < 5e-6  # what two decompositions in float32 differ by
    sizes = golden("spectral/singular_values")[:8]
    torch.testing.assert_close(first.square().sum(1), sizes, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(second.square().sum(0), sizes, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("structured", "dense"), [(StructuredFeedForward, FeedForward), (StructuredSwiGLU, SwiGLU)], ids=["plain", "SwiGLU"]
)
def test_low_rank_at_full_rank_is_the_dense_layer(structured: type, dense: type) -> None:
    """With the weights that the dense layer would start from."""
    torch.manual_seed(0)
    x = inputs(5, 12)
    ours = structured(12, 48, 0.0, partial(LowRankLinear, rank_ratio=1.0))
    theirs = dense(12, 48, 0.0)
    linears = [part for part in theirs.modules() if isinstance(part, nn.Linear)]
    matrices = [torch.cat([part.weight.detach() for part in linears[:-1]]), linears[-1].weight.detach()]
    for layer, matrix in zip((ours.up, ours.down), matrices, strict=True):
        assert layer.rank == 12 == min(matrix.shape)
        layer.first.data, layer.second.data = spectral_factors(matrix, layer.rank)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=5e-6)
    torch.manual_seed(3)
    layer = LowRankLinear(12, 48, rank_ratio=1.0)
    torch.manual_seed(3)
    torch.testing.assert_close(layer.matrix(), FeedForward(12, 48, 0.0)[0].weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["block_dense", "block_shuffle"])
def test_factors_of_blocks_start_semi_orthogonal(kind: str) -> None:
    torch.manual_seed(0)
    layer = KINDS[kind](16, 64)
    for factor in (layer.get_parameter("first"), layer.get_parameter("second")):
        torch.testing.assert_close(torch.linalg.svdvals(factor), torch.ones(*factor.shape[:-2], min(factor.shape[-2:])))


@pytest.mark.parametrize(
    ("hidden_dim", "linear", "share"),
    [
        (768, partial(LowRankLinear, rank_ratio=1 / 2), 0.625),
        (768, partial(LowRankLinear, rank_ratio=1 / 4), 0.3125),
        (768, partial(BlockDenseLinear, rank_ratio=2 / 3, num_blocks=2), 0.625),
        (768, partial(BlockDenseLinear, rank_ratio=1 / 3, num_blocks=2), 0.3125),
        (1024, partial(BlockDenseLinear, rank_ratio=3 / 4, num_blocks=4), 0.5859375),
        (1024, partial(BlockDenseLinear, rank_ratio=3 / 8, num_blocks=4), 0.29296875),
        (768, partial(BlockShuffleLinear, num_blocks=2), 0.625),
        (768, partial(BlockShuffleLinear, num_blocks=4), 0.3125),
    ],
)
def test_the_published_settings_have_their_share_of_the_dense_weights(
    hidden_dim: int, linear: Callable[[int, int], StructuredLinear], share: float
) -> None:
    """What the papers call 63 % and 32 %."""
    with torch.device("meta"):
        layer = StructuredFeedForward(hidden_dim, 4 * hidden_dim, 0.0, linear)
    assert num_weights(layer) / (8 * hidden_dim**2) == share


@pytest.mark.parametrize(("structured", "dense"), [(StructuredFeedForward, FeedForward), (StructuredSwiGLU, SwiGLU)])
@pytest.mark.parametrize("dense_blocks", [0, 1, 2])
def test_the_first_blocks_keep_the_dense_layer(structured: type, dense: type, dense_blocks: int) -> None:
    feedforward = structured if dense_blocks == 1 else partial(structured, dense_blocks=dense_blocks)
    block = partial(TransformerBlock, feedforward=feedforward)
    critic = TransformerCritic(3, 1, hidden_dim=16, head_dim=8, num_layers=3, block=block)
    kinds = [type(block.feedforward) for block in critic.transformer.blocks]  # type: ignore[union-attr]
    assert kinds == dense_blocks * [dense] + (3 - dense_blocks) * [structured]


@pytest.mark.parametrize("kind", KINDS)
def test_a_guide_changes_nothing_at_first_and_takes_the_gradient(kind: str) -> None:
    torch.manual_seed(0)
    layer = KINDS[kind](8, 24, guide=GUIDE)
    x = inputs(5, 8)
    torch.testing.assert_close(layer(x), layer.structured(x), rtol=1e-5, atol=1e-6)
    layer(x).square().sum().backward()
    assert layer.guide is not None
    assert layer.guide.grad is not None
    assert (layer.guide.grad != 0.0).any()
    assert not layer.get_parameter("first").grad.any()  # type: ignore[union-attr]
    assert not layer.get_parameter("second").grad.any()  # type: ignore[union-attr]


def guided_training(updates: int, checkpoint: Path, stop_at: int | None, may_leave_out: bool) -> StructuredLinear:
    """A small map after training with AdamW, stopped and continued from a checkpoint if wanted."""
    torch.manual_seed(0)
    layer: StructuredLinear = LowRankLinear(8, 6, guide=GUIDE)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05)
    for update in range(updates):
        if update == stop_at:
            torch.save({"layer": layer.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
            layer = LowRankLinear(8, 6, guide=GUIDE)
            optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05)
            state = torch.load(checkpoint)
            layer.load_state_dict(state["layer"])
            optimizer.load_state_dict(state["optimizer"])
        optimizer.zero_grad()
        (layer(inputs(5, 8)) - 1.0).square().sum().backward()
        optimizer.step()
        advance_guides(guided_layers(layer), may_leave_out)
    return layer


@pytest.mark.parametrize("may_leave_out", [True, False])
@pytest.mark.parametrize("stop_at", [2, 4, 6])
def test_guided_training_stops_and_continues_bit_for_bit(tmp_path: Path, stop_at: int, may_leave_out: bool) -> None:
    whole = guided_training(8, tmp_path / "x", None, True).state_dict()
    continued = guided_training(8, tmp_path / "x", stop_at, may_leave_out).state_dict()
    assert whole.keys() == continued.keys() == {"first", "second", "bias", "updates"}
    assert [name for name in whole if not torch.equal(whole[name], continued[name])] == []
    assert int(whole["updates"]) == 8


def test_a_guide_is_in_checkpoints_until_it_is_over(tmp_path: Path) -> None:
    before = guided_training(3, tmp_path / "x", None, True)
    assert before.guide_in_graph
    assert "guide" in before.state_dict()
    after = guided_training(4, tmp_path / "x", None, True)
    assert not after.guide_in_graph
    assert "guide" not in after.state_dict()
    loaded = LowRankLinear(8, 6, guide=GUIDE)
    loaded.load_state_dict(after.state_dict())
    assert not loaded.guide_in_graph
    assert torch.equal(loaded(inputs(5, 8)), after(inputs(5, 8)))


def test_counting_an_update_reads_nothing_from_the_device() -> None:
    """As where updates are compiled or recorded: with fake tensors, of which no number can be read."""
    layer = LowRankLinear(8, 6, guide=GUIDE)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            setattr(
                layer, name, nn.Parameter(mode.from_tensor(tensor)) if name != "updates" else mode.from_tensor(tensor)
            )
        for _ in range(5):
            advance_guides(guided_layers(layer))
            assert layer(torch.empty(5, 8)).shape == (5, 6)


@pytest.mark.parametrize("updates", [0, 2, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_network_is_dense_and_computes_the_same(kind: str, updates: int) -> None:
    torch.manual_seed(0)
    layer = StructuredFeedForward(8, 24, 0.0, partial(KINDS[kind], guide=GUIDE))
    for parameter in layer.parameters():
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    for _ in range(updates):
        advance_guides(guided_layers(layer))
    before = copy.deepcopy(layer.state_dict())
    merged = merge_structured(layer)
    assert sorted(merged.state_dict()) == ["down.bias", "down.weight", "up.bias", "up.weight"]
    torch.testing.assert_close(merged(inputs(5, 8)), layer(inputs(5, 8)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.state_dict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_to_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    layer = StructuredFeedForward(8, 24, 0.0, partial(KINDS[kind], guide=GUIDE))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(inputs(5, 8)), layer(inputs(5, 8)))
        advance_guides(guided_layers(layer))


def test_autocast_computes_the_products_in_bfloat16() -> None:
    layer = StructuredFeedForward(8, 24, 0.0, partial(LowRankLinear, guide=GUIDE))
    advance_guides(guided_layers(layer))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs(5, 8)).dtype == torch.bfloat16


def test_a_critic_with_structured_layers_trains_and_every_factor_moves(tmp_path: Path) -> None:
    block = partial(TransformerBlock, feedforward=partial(StructuredFeedForward, dense_blocks=0))
    model = toy_model(critic=partial(TransformerCritic, hidden_dim=16, head_dim=8, block=block))
    before = {name: parameter.clone() for name, parameter in model.critic.named_parameters()}
    fit(tmp_path, model, updates=5)
    assert [name for name, now in model.critic.named_parameters() if torch.equal(now, before[name])] == []


@pytest.mark.slow
def test_an_exported_critic_is_merged(tmp_path: Path) -> None:
    feedforward = partial(StructuredFeedForward, dense_blocks=0, linear=partial(LowRankLinear, guide=GUIDE))
    critic = partial(
        TransformerCritic, hidden_dim=16, head_dim=8, block=partial(TransformerBlock, feedforward=feedforward)
    )
    model = toy_model(critic=critic, extraction="best_of_n", num_samples=3)
    fit(tmp_path, model, updates=4).save_checkpoint(tmp_path / "last.ckpt")
    loaded, _ = load_checkpoint(tmp_path / "last.ckpt")
    assert str(loaded.critic) == str(model.critic)
    exported = export_checkpoint(tmp_path / "last.ckpt", tmp_path / "policy")
    assert exported.largest_difference < 1e-5
    shapes = [tuple(each.dims) for each in onnx.load(tmp_path / "policy" / "policy.onnx").graph.initializer]
    assert not {(4, 16), (16, 4), (4, 64), (64, 4)} & set(shapes)  # of the factors, rank 4
    assert {(16, 64), (64, 16)} & set(shapes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankLinear(8, 6, rank_ratio=0.0), "rank_ratio: expected above 0 and at most 1, found 0.0"),
        (lambda: BlockDenseLinear(9, 6), "num_blocks: expected a divisor of the 9 features, found 2"),
        (lambda: BlockShuffleLinear(8, 6, num_blocks=4), "num_blocks: expected a divisor of the 6 features, found 4"),
        (lambda: SelfGuide(0), r"guide\.updates: expected at least 1, found 0"),
        (lambda: SelfGuide(1, "sine"), r"guide\.form: expected 'linear' or 'cosine', found 'sine'"),  # type: ignore[arg-type]
    ],
)
def test_bad_settings_are_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
