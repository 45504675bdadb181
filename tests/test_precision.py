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
