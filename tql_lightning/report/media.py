"""Pictures and videos of the page, as data URIs up to a total size."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tql_lightning.report.runs import Run, require_own
from tql_lightning.run.folder import (
    ATTENTION_MAP,
    Q_LANDSCAPE,
    VIDEO_FOLDER,
    dark_twin,
    picture_files,
    update_and_episode,
    video_files,
)

KINDS = {
    ATTENTION_MAP: (
        "Attention maps",
        "Which token (row) looks at which (column), averaged over heads and a fixed batch. A weight has the same "
        "colour in every picture.",
    ),
    Q_LANDSCAPE: (
        "Q landscapes",
        "Q around an action of the dataset (above) and of the policy (below); each column has its own scale.",
    ),
    VIDEO_FOLDER: ("Videos", "Evaluation episodes, the same ones at every update."),
}
TYPES = {".png": "image/png", ".mp4": "video/mp4"}


@dataclass(frozen=True)
class Item:
    """A picture or video; ``dark`` is the same picture on a dark background."""

    path: Path
    update: int
    uri: str
    dark: str | None = None


@dataclass
class Media:
    """Pictures and videos of a page.

    Attributes:
        pictures: Kind -> name of the run -> pictures by update. For `VIDEO_FOLDER` the names hold the episode, too.
        videos: Name of the run -> videos whose file names give no update.
        left_out: Files for which the limit left no room.
    """

    pictures: dict[str, dict[str, list[Item]]] = field(default_factory=dict)
    videos: dict[str, list[Item]] = field(default_factory=dict)
    left_out: list[Path] = field(default_factory=list)

    def updates(self, kind: str) -> list[int]:
        """Updates of a kind's pictures in all runs."""
        return sorted({item.update for items in self.pictures[kind].values() for item in items})


def collect_media(runs: Sequence[Run], limit: int) -> Media:
    """Reads pictures and videos of runs.

    If they do not all fit, the last and the first update take precedence, then the middles of the remaining gaps.
    Pictures come before videos, and first episodes before others.

    Args:
        runs: Runs of the report.
        limit: Most bytes of all files, encoded.

    Raises:
        ReportError: a file is a link out of its run's folder, or not a file.
    """
    wanted: list[tuple[float, str, str, int, Path]] = []  # (rank, kind, run, update, file)
    for run in runs:
        for kind, name, first_rank, files in _series(run):
            for _, path in files:
                require_own(run.folder, path)
                if (twin := dark_twin(path)).exists() or twin.is_symlink():
                    require_own(run.folder, twin)
            ranks = _halving_ranks(len(files))
            wanted += [(first_rank + rank, kind, name, *file) for rank, file in zip(ranks, files, strict=True)]
        others = [path for path in video_files(run.folder) if update_and_episode(path) is None]
        for path in others:
            require_own(run.folder, path)
        wanted += [(1.5 + rank, "", run.name, 0, file) for rank, file in enumerate(others)]
    media, used, taken = Media(), 0, []
    for index, (_, _, _, _, path) in sorted(enumerate(wanted), key=lambda each: each[1][0]):
        twin = dark_twin(path)
        size = sum(4 * -(-each.stat().st_size // 3) for each in (path, twin) if each.is_file())
        if used + size > limit:
            media.left_out.append(path)
            continue
        used += size
        taken.append(index)
    for _, kind, name, update, path in (wanted[index] for index in sorted(taken)):
        twin = dark_twin(path)
        item = Item(path, update, _uri(path), _uri(twin) if twin.is_file() else None)
        if kind:
            media.pictures.setdefault(kind, {}).setdefault(name, []).append(item)
        else:
            media.videos.setdefault(name, []).append(item)
    media.pictures = {kind: media.pictures[kind] for kind in KINDS if kind in media.pictures}
    return media


def _uri(path: Path) -> str:
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _series(run: Run) -> Iterator[tuple[str, str, float, list[tuple[int, Path]]]]:
    """Yields a run's series over training: kind, name, first rank, files by update."""
    for kind in (ATTENTION_MAP, Q_LANDSCAPE):
        yield kind, run.name, 0.0, list(picture_files(run.folder, kind).items())
    episodes: dict[int, list[tuple[int, Path]]] = {}
    for path in video_files(run.folder):
        if (named := update_and_episode(path)) is not None:
            episodes.setdefault(named[1], []).append((named[0], path))
    for episode, files in sorted(episodes.items()):
        yield VIDEO_FOLDER, f"{run.name}, episode {episode}", 0.5 + episode, files


def _halving_ranks(count: int) -> list[float]:
    """Rank of each of ``count`` items in a row: 0 the last, 1 the first, 2 the middle, 3 the quarters, ..."""
    ranks = [0.0] * count
    if count > 1:
        ranks[0] = 1.0
    gaps = [(0, count - 1, 2.0)]
    while gaps:
        left, right, rank = gaps.pop()
        if right - left > 1:
            middle = (left + right) // 2
            ranks[middle] = rank
            gaps += [(left, middle, rank + 1), (middle, right, rank + 1)]
    return ranks
