"""Names of the files in a run's folder: the one place that defines them, for writers and readers.

A run's folder is the trainer's ``default_root_dir``. N is the number of updates done, zero-padded to nine digits, so
that names sort by update.

=======================================  =============================================================================
config.yaml                              the resolved configuration
environment.json                         how the run was started and continued: commands, versions, hardware
metrics.csv                              a row per log call; keys are those of docs/metrics.md, ``step`` is N
metrics_before.csv                       metrics.csv of a run that ended before its first checkpoint and was restarted
outcome.json                             of a run of `tql benchmark`: how its last start ended
train.log                                of a run of `tql benchmark` or `tql quickstart`: what it printed
run.lock                                 process that uses the folder; gone once it ends; see `run.lock`
checkpoints/                             last.ckpt, previous.ckpt (the one before), best.ckpt
evaluations/update_<N>.json              one evaluation: ``update``, ``env_id``, ``seed``, ``episodes``, ``returns``,
                                         ``lengths``, ``successes`` (or null), ``summary`` (docs/metrics.md, without
                                         ``eval/``)
evaluations/pending/update_<N>.ckpt      weights that wait for an evaluation in the background; removed after it
divergence/update_<N>.npz, .txt          after a divergence: minibatches and noise from update N on, counted from 0;
                                         names of the values that were not finite
divergence/before_update_<N>.ckpt        weights before update N, written by a replay
baselines.json                           what scores are compared with, by name: ``return``, and what it is of
pictures/attention_map/update_<N>.png    mean attention maps per layer; <N>_dark.png on a dark background
pictures/q_landscape/update_<N>.png      Q around dataset and policy actions, and the same
videos/update_<N>_episode_<i>.mp4        episode i of an evaluation; other videos may be there too
videos/pending/update_<N>.ckpt           weights that wait to be filmed; removed after it
replay/<field>.npy                       steps that an online phase collected
superseded/ in any of these folders      files of updates after the one that the run was continued from
=======================================  =============================================================================
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.csv"
METRICS_BEFORE_FILE = "metrics_before.csv"
BASELINES_FILE = "baselines.json"
LOCK_FILE = "run.lock"
LOG_FILE = "train.log"
OUTCOME_FILE = "outcome.json"
BENCHMARK_FILE = "benchmark.json"  # in the folder of a benchmark: its plan
SEARCH_FILE = "search.json"  # in the folder of a benchmark: the record of a search
EVALUATION_FOLDER = "evaluations"
VIDEO_FOLDER = "videos"
REPLAY_FOLDER = "replay"
SUPERSEDED_FOLDER = "superseded"
ATTENTION_MAP = "attention_map"
Q_LANDSCAPE = "q_landscape"

_NUMBERED = re.compile(r"update_([0-9]{1,15})")
_FILMED = re.compile(r"update_([0-9]{1,15})_episode_([0-9]{1,9})")


def writes_nothing(trainer: Any) -> bool:
    """Whether a trainer only tries a run out (``fast_dev_run``), which leaves no file."""
    return bool(trainer.fast_dev_run)


def update_name(update: int) -> str:
    """File name of an update, without suffix."""
    return f"update_{update:09d}"


def evaluation_file(folder: Path, update: int) -> Path:
    """Path of an evaluation's JSON file."""
    return folder / EVALUATION_FOLDER / f"{update_name(update)}.json"


def pending_file(folder: Path, update: int, kind: str = EVALUATION_FOLDER) -> Path:
    """Path of the snapshot for a pending background evaluation, or for a video if ``kind`` is `VIDEO_FOLDER`."""
    return folder / kind / "pending" / f"{update_name(update)}.ckpt"


def divergence_file(folder: Path, update: int, process: int = 0) -> Path:
    """Path of the recorded inputs of a diverged training from an update on, counted from 0; one per process."""
    return folder / "divergence" / f"update_{update:09d}{f'_process_{process}' if process else ''}.npz"


def before_divergence_file(folder: Path, update: int) -> Path:
    """Path of the weights before a diverged update, counted from 0."""
    return folder / "divergence" / f"before_update_{update:09d}.ckpt"


def picture_file(folder: Path, kind: str, update: int) -> Path:
    """Path of a picture; ``kind`` is `ATTENTION_MAP` or `Q_LANDSCAPE`."""
    return folder / "pictures" / kind / f"{update_name(update)}.png"


def dark_twin(picture: Path) -> Path:
    """Path of the same picture on a dark background."""
    return picture.with_name(f"{picture.stem}_dark{picture.suffix}")


def evaluation_files(folder: Path) -> dict[int, Path]:
    """Evaluations by update, in order."""
    return _numbered(evaluation_file(folder, 0).parent, ".json")


def pending_files(folder: Path, kind: str = EVALUATION_FOLDER) -> dict[int, Path]:
    """Snapshots of pending background evaluations, or videos if ``kind`` is `VIDEO_FOLDER`, by update, in order."""
    return _numbered(pending_file(folder, 0, kind).parent, ".ckpt")


def picture_files(folder: Path, kind: str) -> dict[int, Path]:
    """Pictures of a kind by update, in order."""
    return _numbered(picture_file(folder, kind, 0).parent, ".png")


def video_files(folder: Path) -> list[Path]:
    """Complete videos, sorted by name."""
    return sorted(path for path in (folder / VIDEO_FOLDER).glob("*.mp4") if not path.name.startswith("."))


def update_and_episode(video: Path) -> tuple[int, int] | None:
    """Update and episode in a video's file name; None if it has another form."""
    match = _FILMED.fullmatch(video.stem)
    return None if match is None else (int(match[1]), int(match[2]))


def set_aside_after(folder: Path, update: int) -> list[Path]:
    """Moves files of later updates into ``superseded/`` and removes their pending snapshots.

    Returns:
        Former paths of the moved files.

    Raises:
        OSError: a file cannot be moved or removed.
    """
    numbered = [evaluation_files(folder), *(picture_files(folder, kind) for kind in (ATTENTION_MAP, Q_LANDSCAPE))]
    later = [path for files in numbered for number, path in files.items() if number > update]
    later += [dark for path in later if (dark := dark_twin(path)).is_file()]
    later += [path for path in video_files(folder) if (update_and_episode(path) or (0, 0))[0] > update]
    for kind in (EVALUATION_FOLDER, VIDEO_FOLDER):  # removed first, to make room
        for number, path in pending_files(folder, kind).items():
            if number > update:
                path.unlink()
    for path in later:
        set_aside(path)
    return later


def set_aside(path: Path) -> None:
    """Moves a file into ``superseded/`` beside it, replacing an earlier one of the same name.

    Raises:
        OSError: the file cannot be moved.
    """
    target = path.parent / SUPERSEDED_FOLDER / path.name
    target.parent.mkdir(exist_ok=True)
    path.replace(target)


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Files by the update in their name; other names, such as temporary ones, are skipped."""
    files = {}
    for path in sorted(folder.glob(f"*{suffix}")):
        match = _NUMBERED.fullmatch(path.stem)
        if match:
            files[int(match[1])] = path
    return files
