"""What stays float32 where matrix products are not, and the setting for those in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.toy import fit, toy_dataset, toy_model
from tql_lightning import losses
from tql_lightning.data.sampler import TransitionSampler


def test_losses_targets_entropies_and_temperatures_are_float32_under_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    chunk = TransitionSampler(toy_dataset(), batch_size=16, seed=0).chunk(0, 1)
    batch, noise = (part.update(0) for part in chunk)
    given: list[torch.dtype] = []
    td_loss, entropy_loss = losses.td_loss, losses.entropy_loss

    def seen_td_loss(values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        given.extend((values.dtype, target.dtype))
        return td_loss(values, target)

    def seen_entropy_loss(entropy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        given.extend((entropy.dtype, weight.dtype))
        return entropy_loss(entropy, weight)

    monkeypatch.setattr(losses, "td_loss", seen_td_loss)
    monkeypatch.setattr(losses, "entropy_loss", seen_entropy_loss)
    exact, exact_entropy, _ = model.losses(batch, noise, model.temperature.targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, entropy, metrics = model.losses(batch, noise, model.temperature.targets)
    assert given == [torch.float32] * 8
    assert {total.dtype, entropy.dtype, *(value.dtype for value in metrics.values())} == {torch.float32}
    torch.testing.assert_close(total, exact, rtol=0.02, atol=0.02)
    torch.testing.assert_close(entropy, exact_entropy, rtol=0.02, atol=0.02)
    assert not torch.equal(total, exact)


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
    batch, noise = (part.update(0) for part in keep.chunk)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _, _ = model.losses(batch, noise, model.temperature.targets)
    total.backward()  # outside autocast
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    for (name, gradient), found in zip(expected.items(), keep.gradients, strict=True):
        assert torch.equal(gradient, found), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_updates_of_a_chunk_each_start_from_the_weights_before_them(tmp_path: Path, precision: Any) -> None:
    """Autocast may keep cast weights; none may outlive the optimizer's step."""
    runs = [toy_model() for _ in range(2)]
    for model, updates_per_step in zip(runs, (1, 5), strict=True):
        fit(tmp_path, model, updates=5, updates_per_step=updates_per_step, precision=precision)
    assert all(torch.equal(one, other) for one, other in zip(*(m.parameters() for m in runs), strict=True))


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
        ValueError, match=r"model\.float32_matmul_precision: expected highest, high or medium, found tf32"
    ):
        toy_model(float32_matmul_precision="tf32")
