"""OGBench's single-task datasets (Park et al., arXiv 2410.20092), by the ogbench package's own loader."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tql_lightning.data.sources.download import download
from tql_lightning.data.sources.npz import open_npz
from tql_lightning.data.sources.schema import validation_path
from tql_lightning.data.transitions import DatasetError, TransitionDataset

DIRECTORY_VARIABLE = "OGBENCH_DATA_DIR"
PACKAGE_DIRECTORY = "~/.ogbench/data"  # where the ogbench package keeps its files
TASKS = (1, 2, 3, 4, 5)
SINGLE_TASK = re.compile(r"(?P<domain>.+)-singletask(-task(?P<task>\d+))?-v0")
# What `tql collect` makes, by environment.
COLLECTABLE = dict.fromkeys(("cube-single", "cube-double", "cube-triple", "scene", "puzzle-3x3", "puzzle-4x4"), "play")
COLLECTABLE |= dict.fromkeys([f"pointmaze-{maze}" for maze in ("medium", "large", "giant", "teleport")], "navigate")
URL_VARIABLE = "TQL_OGBENCH_URL"  # address of a mirror of the datasets; else the package's own

# Kinds of data that OGBench offers, by the beginning of the environment's name.
DATA_KINDS = {
    "antmaze": ("navigate", "stitch", "explore"),
    "antsoccer": ("navigate", "stitch"),
    "humanoidmaze": ("navigate", "stitch"),
    "pointmaze": ("navigate", "stitch"),
    "cube": ("play", "noisy"),
    "scene": ("play", "noisy"),
    "puzzle": ("play", "noisy"),
}


def dataset_file(domain: str, dataset_dir: str | None = None) -> Path:
    """Path at which the file of a domain ("cube-double-play") is expected.

    Args:
        domain: environment and kind of data.
        dataset_dir: folder; None for $OGBENCH_DATA_DIR, or the ogbench package's own folder.
    """
    folder = dataset_dir or os.environ.get(DIRECTORY_VARIABLE) or PACKAGE_DIRECTORY
    return Path(folder).expanduser() / f"{domain}-v0.npz"


def load_ogbench(domain: str, task: int | None = None, dataset_dir: str | None = None) -> TransitionDataset:
    """Loads OGBench's dataset of a domain with the rewards and masks of one of its tasks.

    Missing files are downloaded from $TQL_OGBENCH_URL, or else from the ogbench package's address; see `download`. A
    validation file beside the dataset becomes the held-out transitions; without one there are none. Rewards and masks
    are the package's own: the number of reached goals minus the number of goals, and 0 where all are reached. Episodes
    end where the file says. It also reads files saved from the package's loader, with next_observations (full) or
    valids (compact).

    Args:
        domain: environment and kind of data, "cube-double-play"; or the whole name of a single-task dataset,
            "cube-double-play-singletask-task2-v0" ("cube-double-play-singletask-v0" for OGBench's default task).
        task: 1 to 5; the environment is then ENVIRONMENT-singletask-taskN-v0. Default: as the name says, or 1.
        dataset_dir: folder of the dataset files; null for $OGBENCH_DATA_DIR, or the ogbench package's own.

    Raises:
        DatasetError: unknown domain or task, no file and no download, or a damaged file.
    """
    try:
        import gymnasium
        import ogbench  # noqa: F401  (registers the environments)
    except ImportError as error:
        raise DatasetError("OGBench's datasets need its package; pip install 'tql-lightning[ogbench]'") from error
    domain, suffix = _domain_and_suffix(domain, task)
    known = known_domains()
    if domain not in known:
        close = difflib.get_close_matches(domain, known, n=4)
        examples = ", ".join(f"{environment}-{kind}" for environment, kind in COLLECTABLE.items())
        remedy = f"did you mean {' or '.join(close)}?" if close else f"such as {examples}"
        raise DatasetError(f"data.dataset.domain: expected a domain of OGBench, found {domain!r}; {remedy}")
    path = dataset_file(domain, dataset_dir)
    if not path.is_file():
        _download(domain, path)
    held_out = validation_path(path)
    for file in (path, held_out) if held_out.is_file() else (path,):
        _check_arrays(file)  # before creating the environment, which takes seconds
    env_id = f"{domain.rpartition('-')[0]}-{suffix}"
    with without_display_warnings(), closing(gymnasium.make(env_id)) as env:
        validation = _labelled(held_out, env_id, env) if held_out.is_file() else None
        return _labelled(path, env_id, env, validation)


def environment_id(domain: str, task: int | None) -> str:
    """Gymnasium id of a task's environment; see `load_ogbench` for the arguments.

    Raises:
        DatasetError: unknown task.
    """
    domain, suffix = _domain_and_suffix(domain, task)
    return f"ogbench:{domain.rpartition('-')[0]}-{suffix}"


def dataset_address() -> str:
    """Address that missing files are downloaded from: the mirror that is set, else the package's own."""
    import ogbench.utils

    return os.environ.get(URL_VARIABLE) or str(ogbench.utils.DATASET_URL)


def how_to_get(domain: str, path: Path) -> str:
    """Where a domain's missing file comes from: a command that collects one like it, or the package's download."""
    environment, _, kind = domain.rpartition("-")
    remedy = "fetch it where there is a network"
    if COLLECTABLE.get(environment) == kind:  # the command on its own line, to be copied
        remedy += f", or collect one with:\ntql collect {environment} --transitions 100000 --output {path}"
    return f"{path}: {remedy}"


def is_single_task(name: str) -> bool:
    """Whether a name has the form of OGBench's single-task datasets."""
    return SINGLE_TASK.fullmatch(name) is not None


def split_name(name: str) -> tuple[str, int | None]:
    """A single-task dataset's domain and task; no task where the name means OGBench's default one.

    Raises:
        DatasetError: it has not the form of such a name.
    """
    match = SINGLE_TASK.fullmatch(name)
    if match is None:
        raise DatasetError(f"{name}: expected a name such as cube-double-play-singletask-task2-v0; check it")
    return match["domain"], int(match["task"]) if match["task"] else None


def _domain_and_suffix(name: str, task: int | None) -> tuple[str, str]:
    """A domain, or a single task's dataset -> the domain, and the end of its environment's name."""
    domain, named = split_name(name) if is_single_task(name) else (name, TASKS[0] if task is None else task)
    if task is not None and named not in (None, task):
        raise DatasetError(f"data.dataset.task: expected {named} as in {name}, found {task}; leave out one of them")
    number = named if task is None else task
    if number is None:
        return domain, "singletask-v0"
    if number not in TASKS:
        listed = ", ".join(map(str, TASKS))
        raise DatasetError(f"data.dataset.task: expected one of {listed}, found {number}; choose one of these")
    return domain, f"singletask-task{number}-v0"


@contextmanager
def without_display_warnings() -> Iterator[None]:
    """Silences warnings of OGBench environments that users cannot fix: no display, float64 bounds."""
    with warnings.catch_warnings():
        for message in (".*DISPLAY environment variable is missing", ".*precision lowered by casting to float32"):
            warnings.filterwarnings("ignore", message=message)
        yield


def known_domains() -> list[str]:
    """OGBench's domains with single tasks and observations of state, as the installed package registers them."""
    import gymnasium
    import ogbench  # noqa: F401

    suffix = f"-singletask-task{TASKS[0]}-v0"
    environments = [name.removesuffix(suffix) for name in gymnasium.registry if name.endswith(suffix)]
    return [f"{name}-{kind}" for name in sorted(environments) for kind in DATA_KINDS.get(name.split("-")[0], ())]


def _check_arrays(path: Path) -> None:
    with open_npz(path) as file:
        missing = [name for name in ("observations", "actions", "terminals", "qpos") if name not in file.files]
    if missing:
        raise DatasetError(f"{path}: expected a dataset of OGBench, found no array {', '.join(missing)}")


def _labelled(path: Path, env_id: str, env: Any, validation: TransitionDataset | None = None) -> TransitionDataset:
    from ogbench.relabel_utils import relabel_dataset

    try:
        arrays = _transitions(path)
        relabel_dataset(env_id, env, arrays)
    except Exception as error:  # numpy and ogbench raise many kinds of errors for damaged files
        raise DatasetError(
            f"{path}: expected a dataset of OGBench for {env_id}, found one that its loader refuses "
            f"({type(error).__name__}: {error}); remove the file and fetch or collect it again"
        ) from error
    ends = arrays["terminals"] > 0
    return TransitionDataset.from_arrays(
        arrays["observations"],
        arrays["actions"],
        arrays["rewards"],
        # A goal state masks the value but does not end the recording: episode ends come from the file.
        np.zeros_like(ends),
        ends,
        arrays["next_observations"],
        name=f"{path.stem} ({env_id})",
        env_id=f"ogbench:{env_id}",
        masks=arrays["masks"],
        validation=validation,
    )


def _transitions(path: Path) -> dict[str, Any]:
    """Arrays with a row for each transition, from an official file or one saved from the package's loader."""
    from ogbench.utils import load_dataset

    with open_npz(path) as file:
        saved = {"next_observations", "valids"} & set(file.files)
        arrays = {name: file[name] for name in file.files} if saved else {}
    if not saved:
        return dict(load_dataset(str(path), add_info=True))
    if "next_observations" not in arrays:
        rows = np.flatnonzero(arrays["valids"])  # other rows hold only the last observation of an episode
        following = arrays["observations"][rows + 1]
        arrays = {name: values[rows] for name, values in arrays.items()} | {"next_observations": following}
    return arrays


def _download(domain: str, path: Path) -> None:
    address = dataset_address()
    print(f"Downloading dataset from: {address}")
    try:
        for file in (validation_path(path), path):  # the dataset last, as it stands for both
            download(f"{address.rstrip('/')}/{file.name}", file)
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors; an address without a scheme is a ValueError
        remedy = how_to_get(domain, path).removeprefix(f"{path}: ")
        raise DatasetError(
            f"{path}: no such file, and its download failed ({error}); set {URL_VARIABLE} to a mirror, {remedy}"
        ) from error
