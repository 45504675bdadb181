"""Where a run's files lie in its folder: the one place that names them, for whoever writes and whoever reads.

A run's folder is the trainer's ``default_root_dir``. N is the number of updates done, zero-padded to nine digits,
so that names sort as updates do.

=======================================  =============================================================================
config.yaml                              the resolved configuration
environment.json                         how the run was started and continued: commands, versions, kind of machine
metrics.csv                              a row per log call; keys are those of docs/metrics.md, ``step`` is N
metrics_before.csv                       the same of a run that ended before its first checkpoint, and began anew
run.lock                                 while a run uses the folder: its process; see `run_lock`
checkpoints/                             last.ckpt, previous.ckpt (the one before), best.ckpt
evaluations/update_<N>.json              one evaluation: ``update``, ``env_id``, ``seed``, ``episodes``, ``returns``,
                                         ``lengths``, ``successes`` (or null), ``summary`` (docs/metrics.md, without
                                         ``eval/``)
evaluations/pending/update_<N>.ckpt      what is still to be evaluated in the background; gone once it has been
divergence/update_<N>.npz, .txt          of a training that diverged: minibatches and noise from update N on, counted
                                         from 0; what was not finite
divergence/before_update_<N>.ckpt        the weights before the first of them; of a replay
pictures/attention_map/update_<N>.png    mean attention maps per layer
pictures/q_landscape/update_<N>.png      Q around dataset and policy actions
videos/update_<N>_episode_<i>.mp4        episode i of an evaluation, filmed; other videos may lie there too
videos/pending/update_<N>.ckpt           what is still to be filmed; gone once it has been
superseded/ in any of these folders      what was made after an update from which the run then went on anew
=======================================  =============================================================================
"""

from __future__ import annotations

import re
from pathlib import Path

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.csv"
METRICS_BEFORE_FILE = "metrics_before.csv"
LOCK_FILE = "run.lock"
EVALUATION_FOLDER = "evaluations"
VIDEO_FOLDER = "videos"
SUPERSEDED_FOLDER = "superseded"
ATTENTION_MAP = "attention_map"
Q_LANDSCAPE = "q_landscape"

_NUMBERED = re.compile(r"update_(\d+)")
_FILMED = re.compile(r"update_(\d+)_episode_(\d+)")


def update_name(update: int) -> str:
    """How files of an update are named, but for their suffix."""
    return f"update_{update:09d}"


def evaluation_file(folder: Path, update: int) -> Path:
    """The JSON file of an evaluation."""
    return folder / EVALUATION_FOLDER / f"{update_name(update)}.json"


def pending_file(folder: Path, update: int, kind: str = EVALUATION_FOLDER) -> Path:
    """The snapshot of an evaluation (or of `VIDEO_FOLDER`) in the background that has not finished."""
    return folder / kind / "pending" / f"{update_name(update)}.ckpt"


def divergence_file(folder: Path, update: int, process: int = 0) -> Path:
    """What a training that diverged was given from an update on, counted from 0; of several processes each its own."""
    return folder / "divergence" / f"update_{update:09d}{f'_process_{process}' if process else ''}.npz"


def before_divergence_file(folder: Path, update: int) -> Path:
    """The weights that an update which went wrong, counted from 0, began with."""
    return folder / "divergence" / f"before_update_{update:09d}.ckpt"


def picture_file(folder: Path, kind: str, update: int) -> Path:
    """A picture of a kind, e.g. `ATTENTION_MAP`."""
    return folder / "pictures" / kind / f"{update_name(update)}.png"


def evaluation_files(folder: Path) -> dict[int, Path]:
    """A run's evaluations by update, in order."""
    return _numbered(evaluation_file(folder, 0).parent, ".json")


def pending_files(folder: Path, kind: str = EVALUATION_FOLDER) -> dict[int, Path]:
    """A run's unfinished evaluations (or videos, `VIDEO_FOLDER`) by update, in order."""
    return _numbered(pending_file(folder, 0, kind).parent, ".ckpt")


def picture_files(folder: Path, kind: str) -> dict[int, Path]:
    """A run's pictures of a kind by update, in order."""
    return _numbered(picture_file(folder, kind, 0).parent, ".png")


def video_files(folder: Path) -> list[Path]:
    """A run's videos in the order of their names; half-written ones are left out."""
    return sorted(path for path in (folder / VIDEO_FOLDER).glob("*.mp4") if not path.name.startswith("."))


def update_and_episode(video: Path) -> tuple[int, int] | None:
    """What a video's name tells of it: update and episode; None of those that other names were given."""
    match = _FILMED.fullmatch(video.stem)
    return None if match is None else (int(match[1]), int(match[2]))


def set_aside_after(folder: Path, update: int) -> list[Path]:
    """Sets aside what a run made of later updates; snapshots of them, from which nothing is to be made, are removed.

    Returns:
        The files that were set aside, as they were named.

    Raises:
        OSError: one cannot be.
    """
    numbered = [evaluation_files(folder), *(picture_files(folder, kind) for kind in (ATTENTION_MAP, Q_LANDSCAPE))]
    later = [path for files in numbered for number, path in files.items() if number > update]
    later += [path for path in video_files(folder) if (update_and_episode(path) or (0, 0))[0] > update]
    for kind in (EVALUATION_FOLDER, VIDEO_FOLDER):  # first: it makes room
        for number, path in pending_files(folder, kind).items():
            if number > update:
                path.unlink()
    for path in later:
        set_aside(path)
    return later


def set_aside(path: Path) -> None:
    """Moves a file into ``superseded/`` beside it, in the place of an earlier one of its name.

    Raises:
        OSError: it cannot be.
    """
    target = path.parent / SUPERSEDED_FOLDER / path.name
    target.parent.mkdir(exist_ok=True)
    path.replace(target)


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Files of a folder by the update in their name; others, such as half-written ones, are left out."""
    files = {}
    for path in sorted(folder.glob(f"*{suffix}")):
        match = _NUMBERED.fullmatch(path.stem)
        if match:
            files[int(match[1])] = path
    return files
