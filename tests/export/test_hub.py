"""Policies go to the Hugging Face Hub and come back, through the checks of every exported policy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from tests.export.test_policy import trained
from tql_lightning import Policy
from tql_lightning.export.policy_folder import ExportFormat, PolicyError
from tql_lightning.export.writer import export_checkpoint

REPOSITORY = "someone/pendulum"
OBSERVATION = np.array([0.5, -0.2, 1.0], dtype=np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[ExportFormat, Path]:
    folder = tmp_path_factory.mktemp("run")
    checkpoint = trained(folder)
    kinds: tuple[ExportFormat, ...] = ("onnx", "torch")
    return {kind: export_checkpoint(checkpoint, folder / kind, kind).folder for kind in kinds}


def cached(folder: Path, cache: Path) -> Path:
    """What huggingface_hub keeps of a downloaded repository: blobs, and links to them by name."""
    repository = cache / f"models--{REPOSITORY.replace('/', '--')}"
    commit = "0" * 40
    snapshot = repository / "snapshots" / commit
    for part in ("refs", "blobs"):
        (repository / part).mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


@pytest.mark.slow
def test_a_saved_policy_acts_as_the_one_it_was_saved_from(exported: dict[ExportFormat, Path], tmp_path: Path) -> None:
    policy = Policy.load(exported["torch"], seed=3)
    policy.save_pretrained(tmp_path / "saved")
    saved = Policy.from_pretrained(tmp_path / "saved", seed=3)
    assert np.array_equal(policy.act(OBSERVATION), saved.act(OBSERVATION))
    saved.save_pretrained(tmp_path / "saved")  # in its own place
    page = (tmp_path / "saved" / "README.md").read_text()
    assert "# Policy for Pendulum-v1\n" in page
    assert "5 updates on the dataset toy" in page
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        *("README.md", "metadata.json", "policy.safetensors")
    }


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_downloaded_policy_acts_as_the_exported_one(
    kind: ExportFormat, exported: dict[ExportFormat, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(exported[kind], tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    policy = Policy.from_pretrained(REPOSITORY, local_files_only=True)
    assert np.array_equal(policy.act(OBSERVATION), Policy.load(exported[kind]).act(OBSERVATION))


def test_a_strangers_policy_passes_the_same_checks(
    exported: dict[ExportFormat, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = cached(exported["torch"], tmp_path) / "policy.safetensors"
    weights.resolve().write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PolicyError, match=r"policy\.safetensors does not match its checksum"):
        Policy.from_pretrained(REPOSITORY, local_files_only=True)
    with pytest.raises(PolicyError, match=r"policy some/other: found neither a folder of this name nor a policy"):
        Policy.from_pretrained("some/other", local_files_only=True)
    with pytest.raises(PolicyError, match=r"found no metadata\.json"):
        Policy.from_pretrained(tmp_path)


def test_a_policy_that_has_changed_since_it_was_loaded_is_not_saved(
    exported: dict[ExportFormat, Path], tmp_path: Path
) -> None:
    policy = Policy.load(shutil.copytree(exported["torch"], tmp_path / "copy"))
    (tmp_path / "copy" / "policy.safetensors").write_bytes(b"other")
    with pytest.raises(PolicyError, match="does not match its checksum"):
        policy.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


class LocalHub:
    """Takes the place of the Hub's server: a folder for each repository."""

    root = Path()

    def __init__(self, token: str | None) -> None:
        assert token == "secret"

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert (private, exist_ok) == (True, True)
        (self.root / repo_id).mkdir(parents=True)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return f"hub/{repo_id}"


def test_a_pushed_policy_comes_back(
    exported: dict[ExportFormat, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LocalHub.root = tmp_path
    monkeypatch.setattr(huggingface_hub, "HfApi", LocalHub)
    policy = Policy.load(exported["torch"])
    assert policy.push_to_hub(REPOSITORY, private=True, token="secret") == f"hub/{REPOSITORY}"
    assert f'from_pretrained("{REPOSITORY}")' in (tmp_path / REPOSITORY / "README.md").read_text()
    again = Policy.from_pretrained(tmp_path / REPOSITORY)
    assert np.array_equal(policy.act(OBSERVATION), again.act(OBSERVATION))
