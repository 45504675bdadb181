"""What stays float32 where matrix products are not, and the setting for those in float32."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from tests.toy import fit, toy_chunk, toy_model
from tql_lightning.algorithms import losses
from tql_lightning.batch import at_update
from tql_lightning.nn import value_loss
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.policy import FlowPolicy


def test_losses_targets_entropies_and_temperatures_are_float32_under_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    batch, noise = (at_update(part, 0) for part in toy_chunk(model))
    given: list[torch.dtype] = []
    td_loss, entropy_loss = value_loss.td_loss, losses.entropy_loss

    def seen_td_loss(values: torch.Tensor, target: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
        given.extend((values.dtype, target.dtype))
        return td_loss(values, target, *rest)

    def seen_entropy_loss(entropy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        given.extend((entropy.dtype, weight.dtype))
        return entropy_loss(entropy, weight)

    monkeypatch.setattr(value_loss, "td_loss", seen_td_loss)
    monkeypatch.setattr(losses, "entropy_loss", seen_entropy_loss)
    exact = model.losses(batch, noise, model.current_inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.losses(batch, noise, model.current_inputs())
    assert given == [torch.float32] * 8
    numbers = [rounded.total, *rounded.metrics.values(), *rounded.diagnostics.values()]
    assert {number.dtype for number in numbers} == {torch.float32}
    torch.testing.assert_close(rounded.total, exact.total, rtol=0.02, atol=0.02)
    entropies = [each.diagnostics["attention_entropy"] for each in (rounded, exact)]
    torch.testing.assert_close(*entropies, rtol=0.02, atol=0.02)
    assert not torch.equal(rounded.total, exact.total)


class KeepGradients(Callback):
    """Keeps the last chunk and gradients."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.chunk = batch

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients = [parameter.grad.clone() for parameter in pl_module.parameters() if parameter.requires_grad]


def test_a_trainers_backward_pass_rounds_no_more_than_the_forward_pass(tmp_path: Path) -> None:
    keep = KeepGradients()
    fit(tmp_path, toy_model(), updates=1, callbacks=[keep], precision="bf16-mixed")
    model = toy_model()
    batch, noise = (at_update(part, 0) for part in keep.chunk)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = model.losses(batch, noise, model.current_inputs()).total
    total.backward()  # outside autocast
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    for (name, gradient), found in zip(expected.items(), keep.gradients, strict=True):
        assert torch.equal(gradient, found), name


def test_the_updates_of_a_chunk_each_start_from_the_weights_before_them(tmp_path: Path) -> None:
    """Autocast may keep cast weights; none may outlive the optimizer's step."""
    runs = [toy_model() for _ in range(2)]
    for model, updates_per_step in zip(runs, (1, 5), strict=True):
        fit(tmp_path, model, updates=5, updates_per_step=updates_per_step, precision="bf16-mixed")
    assert all(torch.equal(one, other) for one, other in zip(*(m.parameters() for m in runs), strict=True))


class KeepMetrics(Callback):
    """Keeps every update's metrics, and the number types of what training holds."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.dtypes: set[torch.dtype] = set()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.metrics.append({name: float(value) for name, value in outputs["metrics"].items()})
        state = [entry[name] for entry in trainer.optimizers[0].state.values() for name in ("exp_avg", "exp_avg_sq")]
        looked_at = [outputs["loss"], *outputs["diagnostics"].values()]
        self.dtypes |= {tensor.dtype for tensor in (*looked_at, *state, *pl_module.parameters())}

    def mean(self, name: str) -> float:
        return sum(abs(each[name]) for each in self.metrics) / len(self.metrics)


# Share of the mean loss in float32 by which the loss of an update may differ on average.
BOUNDS = {"td_loss": 0.05, "behaviour_flow_loss": 0.01, "distillation_loss": 0.01, "actor_loss": 0.01}


def metrics_of_a_run(folder: Path, updates: int, **settings: Any) -> KeepMetrics:
    keep = KeepMetrics()
    model = toy_model(schedule_updates=200, gradient_clip_norm=10.0)
    fit(folder, model, updates, [keep], updates_per_step=1, log_every_n_steps=1, **settings)
    return keep


def assert_tracks(narrowed: KeepMetrics, exact: KeepMetrics) -> None:
    assert narrowed.dtypes == {torch.float32}
    for loss, bound in BOUNDS.items():
        pairs = list(zip(exact.metrics, narrowed.metrics, strict=False))
        mean_difference = sum(abs(ours[loss] - theirs[loss]) for ours, theirs in pairs) / len(pairs)
        share = mean_difference / exact.mean(loss)
        assert 0.0 < share < bound, f"{loss} differs by {share:.2%} of its mean"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # of steps that float16 leaves out at first
def test_mixed_precision_tracks_float32_over_200_updates(tmp_path: Path) -> None:
    """And keeps weights, optimizer's state, entropies, temperatures and targets in float32."""
    exact = metrics_of_a_run(tmp_path, 200)
    assert_tracks(metrics_of_a_run(tmp_path, 200, precision="bf16-mixed"), exact)
    # Lightning's 16-mixed on a CPU is bf16-mixed. The scale is one at which no gradient overflows.
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=16.0))
    assert_tracks(metrics_of_a_run(tmp_path, 20, plugins=[scaled]), exact)


def test_an_update_whose_float16_gradients_overflow_leaves_out_its_step_alone(tmp_path: Path) -> None:
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**40))
    model = toy_model()
    before = [parameter.clone() for parameter in model.critic.parameters()]
    with pytest.warns(UserWarning, match="lr_scheduler"):
        trainer = fit(tmp_path, model, 1, plugins=[scaled])
    assert trainer.global_step == 1
    assert all(torch.equal(old, new) for old, new in zip(before, model.critic.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_too_narrow_for_small_steps_are_not_trained(precision: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.precision: expected .*float32 to train, .*with {precision}"):
        fit(tmp_path, toy_model(), 1, precision=precision)


def test_steps_of_tau_vanish_in_bfloat16() -> None:
    """Why narrow weights are refused: of the paper's tau and learning rate little arrives."""
    model = toy_model(learning_rate=1e-4).bfloat16()
    with torch.no_grad():
        for parameter in model.critic.parameters():
            parameter.mul_(1.1)
    before = [parameter.clone() for parameter in model.target_critic.parameters()]
    model.before_step({})
    pairs = zip(before, model.target_critic.parameters(), strict=True)
    moved = sum(int((old != new).sum()) for old, new in pairs)
    assert moved == 0


def test_float64_is_kept_throughout_and_a_continued_run_loses_no_digit(tmp_path: Path) -> None:
    whole, parts = toy_model(), toy_model()
    keep = KeepMetrics()
    fit(tmp_path, whole, 10, [keep], precision="64-true")
    assert keep.dtypes == {torch.float64}
    fit(tmp_path, parts, 5, precision="64-true").save_checkpoint(tmp_path / "5.ckpt")
    continued = toy_model()
    fit(tmp_path, continued, 10, precision="64-true", ckpt_path=tmp_path / "5.ckpt")
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), continued.parameters(), strict=True))


@pytest.mark.slow
def test_a_compiled_backward_pass_under_autocast_rounds_as_the_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's default the compiled one would be rounded by autocast where the forward pass kept out of it."""
    gradients = []
    for compiled in (False, True):
        if compiled:  # the backward pass is traced as ever; generating code is left out, which takes minutes
            torch._dynamo.reset()
            monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        keep = KeepGradients()
        small = {"critic": partial(TransformerCritic, hidden_dim=8, head_dim=8, num_layers=1)}
        policy = partial(FlowPolicy, hidden_dims=(8,), flow_steps=1)
        fit(tmp_path, toy_model(compile=compiled, policy=policy, **small), 1, [keep], precision="bf16-mixed")
        gradients.append(keep.gradients)
    assert gradients[0]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


class SeePrecision(Callback):
    """Notes how exact matrix products are while training."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.seen = torch.get_float32_matmul_precision()


def test_the_precision_of_matrix_products_is_set_for_a_run_and_put_back(tmp_path: Path) -> None:
    before = torch.get_float32_matmul_precision()
    for precision in ("high", "highest"):
        see = SeePrecision()
        fit(tmp_path, toy_model(float32_matmul_precision=precision), updates=1, callbacks=[see])
        assert see.seen == precision
        assert torch.get_float32_matmul_precision() == before


def test_a_precision_that_torch_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"model\.execution\.float32_matmul_precision: expected highest, high or medium, found tf32"
    ):
        toy_model(float32_matmul_precision="tf32")
