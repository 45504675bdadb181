"""OGBench's single-task datasets (Park et al., arXiv 2410.20092), by the ogbench package's own loader."""

from __future__ import annotations

import difflib
import os
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np

from tql_lightning.data.transitions import DatasetError, TransitionDataset

DIRECTORY_VARIABLE = "OGBENCH_DATA_DIR"
PACKAGE_DIRECTORY = "~/.ogbench/data"  # where the ogbench package keeps its files
TASKS = (1, 2, 3, 4, 5)


def dataset_file(domain: str, dataset_dir: str | None = None) -> Path:
    """Where the file of a domain ("cube-double-play") is looked for.

    Args:
        domain: environment and kind of data.
        dataset_dir: folder; None for $OGBENCH_DATA_DIR, or the ogbench package's own folder.
    """
    folder = dataset_dir or os.environ.get(DIRECTORY_VARIABLE) or PACKAGE_DIRECTORY
    return Path(folder).expanduser() / f"{domain}-v0.npz"


def load_ogbench(domain: str, task: int = 1, dataset_dir: str | None = None) -> TransitionDataset:
    """Loads OGBench's dataset of a domain with the rewards and masks of one of its tasks.

    The file is downloaded by the ogbench package if it is not there. A validation file beside it becomes the
    held-out transitions.

    Args:
        domain: environment and kind of data, e.g. "cube-double-play".
        task: 1 to 5; the environment is then ENVIRONMENT-singletask-taskN-v0.
        dataset_dir: folder of the dataset files; null for $OGBENCH_DATA_DIR, or the ogbench package's own.

    Raises:
        DatasetError: unknown domain or task, no file and no download, or a damaged file.
    """
    try:
        import gymnasium
        import ogbench  # noqa: F401  (registers the environments)
    except ImportError as error:
        raise DatasetError("OGBench's datasets need its package; pip install 'tql-lightning[ogbench]'") from error
    if task not in TASKS:
        raise DatasetError(f"data.dataset.task: expected one of {', '.join(map(str, TASKS))}, found {task}")
    environment, _, kind = domain.rpartition("-")
    env_id = f"{environment}-singletask-task{task}-v0"
    if env_id not in gymnasium.registry:
        suffix = f"-singletask-task{task}-v0"
        known = sorted(name.removesuffix(suffix) for name in gymnasium.registry if name.endswith(suffix))
        close = difflib.get_close_matches(environment, known) or known
        raise DatasetError(
            f"data.dataset.domain: expected ENVIRONMENT-play or the like, found {domain!r}; environments: "
            f"{', '.join(close[:8])}"
        )
    path = dataset_file(domain, dataset_dir)
    if not path.is_file():
        _download(domain, environment, kind, path)
    env = gymnasium.make(env_id)
    try:
        held_out = path.with_name(f"{path.stem}-val.npz")
        validation = _labelled(held_out, env_id, env) if held_out.is_file() else None
        return _labelled(path, env_id, env, validation)
    finally:
        env.close()


def _labelled(path: Path, env_id: str, env: Any, validation: TransitionDataset | None = None) -> TransitionDataset:
    from ogbench.relabel_utils import relabel_dataset
    from ogbench.utils import load_dataset

    try:
        arrays = load_dataset(str(path), add_info=True)
        relabel_dataset(env_id, env, arrays)
    except Exception as error:  # whatever a damaged or foreign file makes numpy or ogbench raise
        raise DatasetError(
            f"{path}: expected a dataset of OGBench for {env_id}, found one that its loader refuses "
            f"({type(error).__name__}: {error}); remove the file and fetch or collect it again"
        ) from error
    terminated = arrays["masks"] == 0.0
    ends = arrays["terminals"] > 0
    dataset = TransitionDataset.from_arrays(
        arrays["observations"],
        arrays["actions"],
        arrays["rewards"],
        # A goal state masks the value but does not end the recording, so ends come from the file alone.
        np.zeros_like(ends),
        ends,
        arrays["next_observations"],
        name=f"{path.stem} ({env_id})",
        env_id=f"ogbench:{env_id}",
        validation=validation,
    )
    return dataset.with_masks((~terminated).astype(np.float32))


def _download(domain: str, environment: str, kind: str, path: Path) -> None:
    from ogbench.utils import download_datasets

    try:
        download_datasets([f"{domain}-v0"], str(path.parent))
    except (urllib.error.URLError, OSError) as error:
        for part in path.parent.glob(f"{path.stem}*.tmp"):
            part.unlink()
        collect = f"; collect one with: tql collect {environment} --output {path}" if kind == "play" else ""
        raise DatasetError(f"{path}: no such file, and its download failed ({error}){collect}") from error
