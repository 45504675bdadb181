"""Damaged folders of exported policies; forged ones are in test_forged_policies.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.export.test_policy import trained
from tql_lightning import Policy
from tql_lightning.export.policy_folder import PolicyError
from tql_lightning.export.writer import export_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return export_checkpoint(trained(folder), folder / "policy", "torch").folder


def _metadata(folder: Path, **changes: Any) -> None:
    path = folder / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _without(folder: Path, key: str) -> None:
    path = folder / "metadata.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))


WEIGHTS = "policy.safetensors"
DAMAGES = {
    "no metadata": (lambda folder: (folder / "metadata.json").unlink(), "found no metadata.json"),
    "no JSON": (lambda folder: (folder / "metadata.json").write_text("{"), "metadata.json is damaged"),
    "a key missing": (lambda folder: _without(folder, "noise_shape"), "lacks noise_shape"),
    "another version": (lambda folder: _metadata(folder, format_version=2), r"expected format version 1 .* found 2"),
    "another format": (lambda folder: _metadata(folder, format="pickle"), "found 1 .pickle"),
    "weights missing": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "a byte changed": (lambda folder: (folder / WEIGHTS).write_bytes(b"x"), "does not match its checksum"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_an_export_that_is_damaged_is_refused_with_the_reason(
    damage: Any, message: str, whole: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in whole.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    damage(copy)
    with pytest.raises(PolicyError, match=message):
        Policy.load(copy)


def test_a_checkpoint_is_no_export(whole: Path) -> None:
    with pytest.raises(PolicyError, match=r"expected a folder .* found a file; tql export it first"):
        Policy.load(whole.parent / "checkpoints" / "last.ckpt")
