"""The rational feed-forward layer, against the authors' numbers and against autograd."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.toy import fit, toy_model
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.export.writer import export_checkpoint
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.rational import GroupRational, RationalFeedForward, Shape, rational, variance_gain
from tql_lightning.nn.transformer import TransformerBlock

GOLDEN = np.load(Path(__file__).parents[1] / "golden_seeds" / "rational.npz")
LAYERS = {"act1": "first", "fc1": "up", "act2": "second", "fc2": "down"}  # the release's names -> ours
RATIONAL_CRITIC = partial(
    TransformerCritic, hidden_dim=16, head_dim=8, block=partial(TransformerBlock, feedforward=RationalFeedForward)
)


def golden(name: str) -> Tensor:
    return torch.tensor(GOLDEN[name], dtype=torch.float64)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest entry."""
    assert ours.numel() == theirs.numel()
    ours = ours.detach().double().reshape(theirs.shape)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def golden_layer() -> RationalFeedForward:
    layer = RationalFeedForward(16, 32, dropout=0.0, num_groups=4).double()
    for theirs, ours in LAYERS.items():
        for name, parameter in layer.get_submodule(ours).named_parameters():
            parameter.data.copy_(golden(f"param/{theirs}/{name}").view_as(parameter))
    return layer


def test_the_layer_has_the_authors_outputs_and_gradients() -> None:
    layer = golden_layer()
    x = golden("x").requires_grad_()
    output = layer(x)
    output.backward(golden("grad_y"))
    assert difference(layer.first(x), golden("act1")) < 1e-6
    assert difference(output, golden("y")) < 1e-6
    assert x.grad is not None
    assert difference(x.grad, golden("grad/x")) < 1e-6
    for theirs, ours in LAYERS.items():
        for name, parameter in layer.get_submodule(ours).named_parameters():
            assert parameter.grad is not None
            assert difference(parameter.grad, golden(f"grad/{theirs}/{name}")) < 1e-6, (ours, name)


def test_five_steps_of_gradient_descent_are_the_authors() -> None:
    layer = golden_layer()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    for step in range(5):
        optimizer.zero_grad()
        loss = (layer(golden("x")) - golden("grad_y")).square().mean()
        assert float(loss.detach()) == pytest.approx(float(GOLDEN[f"sgd/loss_{step}"]), rel=1e-6)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for theirs, ours in LAYERS.items():
        for name, parameter in layer.get_submodule(ours).named_parameters():
            assert difference(parameter, golden(f"sgd/param_5/{theirs}/{name}")) < 1e-6, (ours, name)


@pytest.mark.parametrize(
    ("theirs", "shape"), {"identity": "identity", "swish": "swish", "gelu": "gelu_release"}.items()
)
def test_untouched_functions_have_the_authors_gradients(theirs: str, shape: Shape) -> None:
    """The identity's denominators are exactly 0: their gradient takes sign(0) = +1."""
    function = GroupRational(8, 4, shape)
    x = golden("exact/x").float().requires_grad_()
    output = function(x)
    output.backward(golden("exact/grad_y").float())
    assert difference(output, golden(f"exact/{theirs}/y")) < 1e-6
    gradients = {"x": x.grad, "numerator": function.numerator.grad, "denominator": function.denominator.grad}
    for name, gradient in gradients.items():
        assert gradient is not None
        assert difference(gradient, golden(f"exact/{theirs}/grad/{name}")) < 1e-6, name
    assert function.denominator.grad is not None
    assert (function.denominator.grad != 0.0).all()


NAMES = sorted(name.rpartition("/")[2] for name in GOLDEN.files if name.startswith("grid/") and name != "grid/x")


@pytest.mark.parametrize("name", NAMES)
def test_functions_have_the_authors_values_on_a_grid(name: str) -> None:
    numerator, denominator = golden(f"init/{name}/numerator"), golden(f"init/{name}/denominator")
    assert difference(rational(golden("grid/x"), numerator, denominator[None]), golden(f"grid/{name}")) < 1e-6


@pytest.mark.parametrize(
    ("shape", "function", "error"),
    [
        ("identity", nn.Identity(), 1e-9),
        ("swish", nn.SiLU(), 2e-6),
        ("gelu", nn.GELU(), 0.0042),
    ],
)
def test_initial_functions_fit_what_they_are_named_after(shape: Shape, function: nn.Module, error: float) -> None:
    x = torch.linspace(-3.0, 3.0, 601, dtype=torch.float64)[:, None]
    assert float((GroupRational(1, 1, shape)(x) - function(x)).detach().abs().max()) < error


@pytest.mark.parametrize(
    ("shape", "gain"), [("identity", 1.0), ("swish", 2.8108), ("gelu", 2.3516), ("gelu_release", 3.19)]
)
def test_gains_are_the_integrals_over_a_normal_distribution(shape: Shape, gain: float) -> None:
    assert variance_gain(shape) == pytest.approx(gain, rel=1e-3)


def test_variance_initialisation_keeps_the_variance_of_activations_and_the_releases_does_not() -> None:
    generator = torch.manual_seed(0)
    x = torch.randn(2000, 256, generator=generator)
    kept, shrunk = (RationalFeedForward(256, 1024, 0.0, init=init) for init in ("variance", "release"))  # type: ignore[arg-type]
    assert float(kept.up(kept.first(x)).detach().var()) == pytest.approx(1.0, rel=0.05)
    assert float(kept(x).detach().var()) == pytest.approx(1.0, rel=0.05)
    assert float(shrunk.up.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(shrunk(x).detach().var()) < 0.05


def test_gradients_are_those_of_finite_differences_also_of_second_order() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, generator=generator, dtype=torch.float64) for size in ((3, 8), (6,), (4, 4))]
    inputs = [each.requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(rational, inputs)
    assert torch.autograd.gradgradcheck(rational, inputs)


def test_the_backward_pass_keeps_the_input_and_the_coefficients_alone() -> None:
    function = GroupRational(8, 4, "swish")
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):  # type: ignore[func-returns-value]
        function(x)
    assert sorted(tensor.numel() for tensor in kept) == [6, 16, 40]


def test_autocast_leaves_the_function_in_float32() -> None:
    function = GroupRational(8, 4, "swish")
    x = torch.linspace(-3.0, 3.0, 40).reshape(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(function(x), function.double()(x.double()).float(), rtol=1e-6, atol=1e-6)
    rounded = function.float()(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, function(x.bfloat16().float()).bfloat16(), rtol=0.0, atol=0.0)


def test_coefficients_do_not_decay_whatever_their_rank_and_weights_do() -> None:
    critic = RATIONAL_CRITIC(3, 1)
    decaying = {name for name, parameter in critic.named_parameters() if critic.decays(name, parameter)}
    own = {f"transformer.blocks.0.feedforward.{name}" for name in RationalFeedForward(16, 64, 0.0).state_dict()}
    assert own & decaying == {f"transformer.blocks.0.feedforward.{name}.weight" for name in ("up", "down")}


@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated")  # by torch's own tracer
def test_it_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    layer = RationalFeedForward(16, 32, 0.0)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    losses, gradients = [], []
    for function in (layer, compiled):
        loss = function(x).square().mean()
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, list(layer.parameters())))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.slow
def test_a_checkpoint_loads_by_class_path_and_its_policy_leaves_as_onnx(tmp_path: Path) -> None:
    model = toy_model(critic=RATIONAL_CRITIC, extraction="best_of_n", num_samples=3)
    fit(tmp_path, model, updates=4).save_checkpoint(tmp_path / "last.ckpt")
    loaded, _ = load_checkpoint(tmp_path / "last.ckpt")
    (first, _) = [module for module in loaded.critic.modules() if isinstance(module, RationalFeedForward)]
    trained = model.critic.get_submodule("transformer.blocks.0.feedforward.first")
    assert isinstance(trained, GroupRational)
    assert torch.equal(first.first.denominator, trained.denominator)
    assert (trained.denominator != 0.0).any()
    assert export_checkpoint(tmp_path / "last.ckpt", tmp_path / "policy").largest_difference < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_groups": 3}, "expected a divisor of the 16 channels, found 3"),
        ({"second": "relu"}, "shape: expected identity or swish or gelu or gelu_release, found relu"),
        ({"init": "zeros"}, r"RationalFeedForward\.init: expected variance or release, found zeros"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RationalFeedForward(16, 32, 0.0, **arguments)  # type: ignore[arg-type]
