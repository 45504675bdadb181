"""Reads runs from their folders; parts that a run did not write are empty."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tql_lightning.run.baselines import Scores, read_baselines
from tql_lightning.run.folder import BASELINES_FILE, CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, evaluation_files
from tql_lightning.run.metrics_csv import Series, read_metrics
from tql_lightning.run.provenance import read_starts
from tql_lightning.trust.bounded import read_json, read_text
from tql_lightning.trust.text import FileError, shown
from tql_lightning.trust.yaml_text import read_yaml

MAX_DIGITS = 15  # digits of a number of updates
LONGEST_NAME = 10_000  # characters of an environment's name; a specification is one, too
MAX_DEPTH = 5  # levels of folders searched for runs
FOLDER_KEY = "trainer.default_root_dir"
SEED_KEYS = ("seed_everything", "data.seed")
DATASET_PREFIX = "data.dataset"
OBSERVERS = ("trainer.callbacks", "trainer.logger", "trainer.log_every_n_steps", "trainer.enable_")  # change no update
CONTINUING = ("ckpt_path",)  # does not make another method


class ReportError(FileError):
    """A folder holds no run, or a run's file is damaged; the message names it."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: Path of the folder, without the start that all runs of the report share.
        folder: Folder of the run.
        config: Resolved configuration by dotted key, without seed and folder.
        config_text: Text of config.yaml.
        seed: Seed of the run, or None.
        series: Columns of metrics.csv.
        evaluations: Contents of evaluation files, by update.
        starts: Starts and continuations; see `run.provenance`.
        baselines: Scores of each thing that the run is compared with, by its name.
    """

    name: str
    folder: Path
    config: Mapping[str, str]
    config_text: str
    seed: str | None
    series: Series
    evaluations: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    starts: Sequence[Mapping[str, Any]] = ()
    baselines: Mapping[str, Scores] = field(default_factory=dict)

    @property
    def updates(self) -> int:
        """Last update in metrics.csv."""
        return max((updates[-1] for updates, _ in self.series.values()), default=0)

    @property
    def planned(self) -> int | None:
        """Planned number of updates, online ones included, or None."""
        offline = _whole_number(self.config.get("trainer.max_steps", ""))
        names = ("steps", "start_steps", "num_envs")
        steps, start, envs = (_whole_number(self.config.get(f"online.{name}", "")) or 0 for name in names)
        try:
            ratio = float(self.config.get("online.updates_per_env_step", "1"))
            online = (steps - start) // max(envs, 1) * round(ratio * max(envs, 1))
        except (ValueError, OverflowError):
            return None
        return None if offline is None else offline + online

    @property
    def online_from(self) -> int | None:
        """Update at which the online phase begins; None without one."""
        updates, env_steps = self.series.get("env_steps", ([], []))
        return max((update for update, steps in zip(updates, env_steps, strict=True) if not steps), default=None)

    @property
    def is_short(self) -> bool:
        """Whether metrics end before the planned last log call."""
        unlogged = max(_whole_number(self.config.get("trainer.log_every_n_steps", "")) or 1, 1)
        return self.planned is not None and self.planned - self.updates >= unlogged

    @property
    def method_key(self) -> tuple[tuple[str, str], ...]:
        """Configuration without seed, folder, dataset and observers; equal for runs of one method."""
        apart = (DATASET_PREFIX, *OBSERVERS, *CONTINUING)
        return tuple((key, value) for key, value in self.config.items() if not key.startswith(apart))

    @property
    def task(self) -> str:
        """Environment of its evaluations, or else its dataset."""
        for evaluation in self.evaluations.values():
            return str(evaluation["env_id"])
        named = f"{DATASET_PREFIX}.class_path"
        values = [value for key, value in self.config.items() if key.startswith(f"{DATASET_PREFIX}.") and key != named]
        return Path(values[0]).stem if values else self.config.get(named, "one task")


def _whole_number(text: str) -> int | None:
    """The number that a setting is; None where it is another kind, or of more digits than updates have."""
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads runs from folders of runs, or from folders that hold runs, in order.

    Raises:
        ReportError: a folder is missing or holds no run, or a file is damaged.
    """
    found: list[Path] = []
    for folder in folders:
        inside = list(_runs_in(folder))
        if not inside:
            what = "a file" if folder.is_file() else "no run in it" if folder.is_dir() else "no such folder"
            raise ReportError(
                f"report {folder}: expected a run's folder with a {METRICS_FILE}, or a folder of runs, found {what}"
            )
        found += [run for run in inside if run not in found]
    names = _short_names(found)
    return [_read_run(name, folder) for name, folder in zip(names, found, strict=True)]


def _runs_in(folder: Path, depth: int = 0) -> Iterator[Path]:
    if (folder / METRICS_FILE).is_file():
        yield folder
    elif folder.is_dir() and depth < MAX_DEPTH:
        for inside in sorted(folder.iterdir(), key=lambda path: _natural_order(path.name)):
            if inside.is_symlink() and inside.is_dir():
                raise ReportError(f"report {inside}: expected a folder, found a link to one; name its target instead")
            if inside.is_dir():
                yield from _runs_in(inside, depth + 1)


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that puts seed_2 before seed_10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _short_names(folders: Sequence[Path]) -> list[str]:
    parts = [folder.absolute().parts for folder in folders]
    shared = 0
    while len(parts) > 1 and all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    shared = shared if len(parts) > 1 else max(len(parts[0]) - 2, 0)
    return ["/".join(each[shared:]) for each in parts]


def _read_run(name: str, folder: Path) -> Run:
    metrics, evaluated = folder / METRICS_FILE, evaluation_files(folder)
    for path in (
        metrics,
        *(folder / name for name in (CONFIG_FILE, ENVIRONMENT_FILE, BASELINES_FILE)),
        *evaluated.values(),
    ):
        if path.exists() or path.is_symlink():
            require_own(folder, path)
    try:
        series = read_metrics(metrics)
    except (ValueError, KeyError, TypeError, OSError, OverflowError, csv.Error) as error:
        raise ReportError(
            f"report {metrics}: expected numbers by column and a column step, as tql fit writes, found "
            f"{type(error).__name__}: {shown(str(error))}"
        ) from error
    text, config = _read_config(folder / CONFIG_FILE)
    own_folder = config.pop(FOLDER_KEY, None)
    seeds = [config.pop(key) for key in SEED_KEYS if key in config]
    if own_folder:
        config = {key: value.replace(own_folder, "RUN") for key, value in config.items()}
    evaluations = {update: _read_evaluation(path) for update, path in evaluated.items()}
    seed = seeds[0] if seeds else None
    return Run(name, folder, config, text, seed, series, evaluations, read_starts(folder), read_baselines(folder))


def require_own(folder: Path, path: Path) -> None:
    """Refuses links out of a run's folder, since the page would show their targets.

    Raises:
        ReportError: the path is a link out of the folder, or not a file.
    """
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise ReportError(
            f"report {path}: expected a file in the run's folder, found a link out of it, or no file; copy its target "
            "(cp -L), or remove it"
        )


def _read_config(path: Path) -> tuple[str, dict[str, str]]:
    if not path.is_file():
        return "", {}
    try:
        text = read_text(path)
        config = read_yaml(text)
        flat = dict(_flat("", config)) if isinstance(config, dict) else {}
    except (yaml.YAMLError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ReportError(f"report {path}: expected the configuration that tql fit wrote, found {first}") from error
    if not isinstance(config, dict):
        raise ReportError(f"report {path}: expected settings by name, found {type(config).__name__}")
    return text, flat


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Leaves of a configuration by dotted key, as text.

    A setting has one key whether its part is named or the default: ``model.tau``, not ``model.init_args.tau``.
    """
    if isinstance(value, dict) and value:
        for name, inside in value.items():
            own = name == "init_args" and "class_path" in value
            yield from _flat(prefix if own else f"{prefix}.{name}" if prefix else str(name), inside)
    elif isinstance(value, list) and any(isinstance(inside, dict) for inside in value):
        for index, inside in enumerate(value):
            yield from _flat(f"{prefix}.{index}", inside)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, default=str)


def _read_evaluation(path: Path) -> dict[str, Any]:
    try:
        evaluation = read_json(path)
    except (ValueError, OSError) as error:
        raise ReportError(f"report {path}: expected an evaluation in JSON, found {error}") from error
    if not isinstance(evaluation, dict) or not {"env_id", "summary", "returns"} <= evaluation.keys():
        raise ReportError(f"report {path}: expected an evaluation with env_id, returns and summary, found one without")
    if not isinstance(evaluation["env_id"], str) or len(evaluation["env_id"]) > LONGEST_NAME:
        raise ReportError(f"report {path}: expected env_id to be a name, found {shown(evaluation['env_id'])}")
    return evaluation
