"""Keeps the episodes of an unfinished collection in a folder beside its output, so that it can be continued."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.sources.npz import read_npz, save_npz
from tql_lightning.data.transitions import DatasetError
from tql_lightning.system.files import write_text_whole
from tql_lightning.trust.bounded import read_json

SECONDS_BETWEEN_PARTS = 10.0  # a kill loses at most this much; a short collection writes nothing
SETTINGS = "settings.json"
LENGTHS = "lengths"

Arrays = dict[str, NDArray[Any]]


class KeptEpisodes:
    """The first episodes of a collection, in order, in files that appear once they are complete.

    Args:
        output: file that the collection is to make; the folder is ``<output>.partial``, and is made when there is
            something to keep.
        settings: JSON values that the episodes depend on, by name.
        overwrite: drop what was kept with other settings, instead of raising.

    Raises:
        DatasetError: episodes were kept with other settings.
    """

    def __init__(self, output: Path, settings: dict[str, Any], overwrite: bool = False) -> None:
        self.folder = output.with_name(f"{output.name}.partial")
        self.settings = settings
        self._waiting: list[Arrays] = []
        self._written = 0
        self._last = time.monotonic()
        file = self.folder / SETTINGS
        found = read_json(file) if file.is_file() else settings
        different = [name for name in {**settings, **found} if settings.get(name) != found.get(name)]
        if different and not overwrite:
            changes = ", ".join(f"{name} {found.get(name)} (now {settings.get(name)})" for name in different)
            raise DatasetError(
                f"output: {self.folder} holds episodes of an interrupted collection with {changes}; continue it with "
                "the same settings, or pass --overwrite=true to start over"
            )
        if different:
            self.discard()

    def load(self) -> list[Arrays]:
        """The episodes kept so far."""
        episodes: list[Arrays] = []
        while (part := self._part(len(episodes))).is_file():
            arrays = read_npz(part)
            bounds = arrays.pop(LENGTHS).cumsum()[:-1]
            pieces = {name: np.split(array, bounds) for name, array in arrays.items()}
            episodes += [dict(zip(pieces, rows, strict=True)) for rows in zip(*pieces.values(), strict=True)]
        self._written = len(episodes)
        return episodes

    def add(self, episode: Arrays) -> None:
        """Adds the next episode; writes pending episodes every few seconds."""
        self._waiting.append(episode)
        if time.monotonic() - self._last >= SECONDS_BETWEEN_PARTS:
            self.write()

    def write(self) -> None:
        """Writes the pending episodes."""
        if not self._waiting:
            return
        if not self._written:
            write_text_whole(self.folder / SETTINGS, json.dumps(self.settings))
        lengths = np.array([len(next(iter(episode.values()))) for episode in self._waiting])
        save_npz(self._part(self._written), **joined(self._waiting), **{LENGTHS: lengths})
        self._written += len(self._waiting)
        self._waiting = []
        self._last = time.monotonic()

    def discard(self) -> None:
        """Removes the folder once its episodes are in the output or not wanted."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, first: int) -> Path:
        return self.folder / f"episodes_{first:08}.npz"


def joined(episodes: list[Arrays]) -> Arrays:
    """Concatenates the arrays of several episodes."""
    return {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
