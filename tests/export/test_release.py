"""Conversion of the release's parameters is exact; arrays that do not fit are refused by name."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.toy import toy_model
from tql_lightning.export.release import load_release_params, release_arrays, save_release_params
from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.attention_components import SoftCap
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.feedforward import SwiGLU
from tql_lightning.nn.sigma_reparam import SigmaReparam
from tql_lightning.nn.temperature import AttentionTemperature, SingleTemperature
from tql_lightning.nn.transformer import TransformerBlock
from tql_lightning.nn.value_loss import HLGauss

FORMS: list[dict[str, Any]] = [
    {},
    {"entropy_control": partial(AttentionTemperature, form="sign", initial=-0.3)},
    {"entropy_control": None},
    {"critic": partial(TransformerCritic, hidden_dim=16, head_dim=8, modality_embeddings=False, num_critics=3)},
]


@pytest.mark.parametrize("settings", FORMS)
def test_a_round_trip_is_exact(settings: dict[str, Any], tmp_path: Path) -> None:
    model, other = toy_model(**settings), toy_model(**settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    save_release_params(model, tmp_path / "params.npz")
    load_release_params(other, tmp_path / "params.npz")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    again = release_arrays(other)
    assert all(np.array_equal(array, again[name]) for name, array in release_arrays(model).items())


def broken(change: str) -> dict[str, np.ndarray]:
    arrays = release_arrays(toy_model())
    name = "critic/transformer_block_1/key/kernel"
    if change == "missing":
        del arrays[name]
    elif change == "extra":
        arrays["critic/transformer_block_9/key/kernel"] = arrays[name]
    elif change == "misshapen":
        arrays[name] = arrays[name].reshape(16, 16)
    elif change in ("str", "object", "complex128"):
        arrays[name] = arrays[name].astype(change)
    else:
        arrays[name] = arrays[name] * np.nan
    return arrays


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"missing critic/transformer_block_1/key/kernel \(16, 2, 8\)"),
        ("extra", r"left over critic/transformer_block_9/key/kernel \(16, 2, 8\)"),
        ("misshapen", r"critic/transformer_block_1/key/kernel: expected shape \(16, 2, 8\), found \(16, 16\)"),
        ("not finite", r"critic/transformer_block_1/key/kernel: expected finite numbers"),
        ("str", r"critic/transformer_block_1/key/kernel: expected real numbers, found <U\d+"),
        ("object", r"critic/transformer_block_1/key/kernel: expected real numbers, found object"),
        ("complex128", r"critic/transformer_block_1/key/kernel: expected real numbers, found complex128"),
    ],
)
def test_arrays_that_do_not_fit_are_named_and_the_model_stays(change: str, message: str) -> None:
    model = toy_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_release_params(model, broken(change))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_whatever_numpy_takes_for_real_numbers_is_loaded() -> None:
    model = toy_model()
    expected = {name: array + np.float32(1.0) for name, array in release_arrays(model).items()}
    for array in expected.values():
        array.flags.writeable = False
    given: dict[str, Any] = dict(expected)
    given["critic/cls_token"] = expected["critic/cls_token"].tolist()
    given["critic/pos_embedding"] = expected["critic/pos_embedding"].astype(np.float64)
    load_release_params(model, given)
    assert all(np.array_equal(array, expected[name]) for name, array in release_arrays(model).items())


def test_the_releases_temperature_is_left_out_where_asked_to(tmp_path: Path) -> None:
    save_release_params(toy_model(), tmp_path / "params.npz")
    model = toy_model(entropy_control=None)
    with pytest.raises(ValueError, match=r"left over attention_entropy_temperature/log_value .*set ignore_temperature"):
        load_release_params(model, tmp_path / "params.npz")
    load_release_params(model, tmp_path / "params.npz", ignore_temperature=True)
    with pytest.raises(ValueError, match=r"left over critic/other \(1,\)"):
        load_release_params(model, release_arrays(model) | {"critic/other": np.zeros(1)}, ignore_temperature=True)


@pytest.mark.parametrize("content", [b"no archive", b"", "an array"])
def test_files_that_are_no_archive_of_arrays_are_named(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "params.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"params\.npz: expected"):
        load_release_params(toy_model(), path)
    with pytest.raises(FileNotFoundError, match=r"none\.npz: no such file"):
        load_release_params(toy_model(), tmp_path / "none.npz")


def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    (example,) = re.findall(r"```python\n(.*?)```", (root / "docs" / "fidelity.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(root / "tests")
    namespace: dict[str, Any] = {}
    exec(example, namespace)  # the document's own code
    model, again = namespace["model"], namespace["again"]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with np.load(root / "tests" / "golden" / "A" / "params_5.npz") as release:
        assert all(np.array_equal(array, release[name]) for name, array in release_arrays(again).items())


def with_parts(**parts: Any) -> dict[str, Any]:
    return {"critic": partial(TransformerCritic, hidden_dim=16, head_dim=8, **parts)}


CAPPED = partial(TransformerBlock, attention=partial(EntropyAttention, score_transform=SoftCap()))
VARIANTS: list[tuple[dict[str, Any], str]] = [
    ({"critic": partial(MLPCritic, hidden_dims=(8,))}, "expected a TransformerCritic, .* found MLPCritic"),
    (with_parts(weight_parametrisation=SigmaReparam), "SigmaReparam"),
    (with_parts(block=partial(TransformerBlock, feedforward=SwiGLU)), "SwiGLU"),
    (with_parts(norm=torch.nn.RMSNorm), "RMSNorm"),
    (with_parts(block=CAPPED), "SoftCap"),
    ({"value_loss": HLGauss, "reward_range": (0.0, 1.0)}, "Bins"),
    ({"entropy_control": SingleTemperature}, "SingleTemperature"),
]


@pytest.mark.parametrize(("settings", "found"), VARIANTS)
def test_models_the_release_cannot_hold_are_refused(settings: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        release_arrays(toy_model(**settings))
