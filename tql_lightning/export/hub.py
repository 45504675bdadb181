"""Exported policies on the Hugging Face Hub: the same folders as on disk, with a page that describes them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tql_lightning.export.policy_folder import FILES, METADATA_FILE, PolicyError, read_metadata
from tql_lightning.trust.text import shown

CARD_FILE = "README.md"
CARD = """\
---
library_name: tql-lightning
pipeline_tag: reinforcement-learning
tags: [offline-reinforcement-learning, tql]
---
# Policy for {env_id}

Made by tql_lightning: {updates} updates on the dataset {dataset}, exported as {format}. Observations have
{observation_dim} numbers, actions {action_dim}. `metadata.json` has bounds, checksums and how the files were checked.

```python
from tql_lightning import Policy

policy = Policy.from_pretrained("{name}")
action = policy.act(observation)
```
"""


def save_folder(source: Path, folder: Path, name: str) -> None:
    """Copies an exported policy, after checking it, and writes its page.

    Raises:
        PolicyError: a file of the source is missing, damaged or changed.
    """
    metadata = read_metadata(source)
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != source.resolve():
        for each in (*FILES[metadata["format"]], METADATA_FILE):  # a folder without metadata is no policy yet
            shutil.copyfile(source / each, folder / each)
    (folder / CARD_FILE).write_text(_card(metadata, name))


def _card(metadata: Mapping[str, Any], name: str) -> str:
    keys = ("env_id", "format", "updates", "dataset", "observation_dim", "action_dim")
    found = {key: shown(metadata[key]) if metadata[key] is not None else "unknown" for key in keys}
    return CARD.format(name=name, **found)


def upload(source: Path, repo_id: str, private: bool, token: str | None) -> str:
    """Uploads an exported policy and returns the page's address.

    Raises:
        PolicyError: huggingface_hub is missing, or a file of the source is missing, damaged or changed.
    """
    api = _hub().HfApi(token=token)
    with tempfile.TemporaryDirectory() as scratch:
        save_folder(source, Path(scratch), repo_id)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=scratch, commit_message="Upload policy"))


def download(repo_id: str, revision: str | None, token: str | None, local_files_only: bool) -> Path:
    """Downloads the files that `Policy.load` reads, and no others, and returns their folder.

    Raises:
        PolicyError: huggingface_hub is missing, or has no such policy.
    """
    wanted = [METADATA_FILE, *(name for names in FILES.values() for name in names)]
    hub = _hub()
    try:
        return Path(
            hub.snapshot_download(
                repo_id, revision=revision, token=token, allow_patterns=wanted, local_files_only=local_files_only
            )
        )
    except (OSError, ValueError) as error:  # those of huggingface_hub are subclasses
        first = str(error).strip().splitlines()[0]
        raise PolicyError(
            f"policy {repo_id}: found neither a folder of this name nor a policy on the Hugging Face Hub ({first})"
        ) from error


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise PolicyError(f'the Hugging Face Hub: {error}; pip install "tql-lightning[hub]"') from error
    return huggingface_hub
