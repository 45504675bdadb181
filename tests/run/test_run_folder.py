"""Names of a run's files: written files are found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tql_lightning.run.folder import (
    ATTENTION_MAP,
    Q_LANDSCAPE,
    VIDEO_FOLDER,
    evaluation_file,
    evaluation_files,
    pending_file,
    picture_file,
    picture_files,
    set_aside_after,
    video_files,
)


def test_files_are_found_in_the_order_of_their_updates_and_others_are_not(tmp_path: Path) -> None:
    for update in (1_000_000, 5, 20):
        for path in (evaluation_file(tmp_path, update), picture_file(tmp_path, Q_LANDSCAPE, update)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (evaluation_file(tmp_path, 5).parent / ".update_000000007.json.part").touch()
    (evaluation_file(tmp_path, 5).parent / "notes.json").touch()
    assert list(evaluation_files(tmp_path)) == list(picture_files(tmp_path, Q_LANDSCAPE)) == [5, 20, 1_000_000]
    assert evaluation_files(tmp_path)[20] == tmp_path / "evaluations" / "update_000000020.json"
    assert picture_files(tmp_path, ATTENTION_MAP) == {}


def test_a_folder_without_videos_has_none(tmp_path: Path) -> None:
    assert video_files(tmp_path) == []
    (tmp_path / VIDEO_FOLDER).mkdir()
    (tmp_path / VIDEO_FOLDER / "episode.mp4").touch()
    (tmp_path / VIDEO_FOLDER / ".other.part.mp4").touch()
    assert video_files(tmp_path) == [tmp_path / VIDEO_FOLDER / "episode.mp4"]


def test_what_was_made_after_an_update_is_set_aside_and_nothing_else(tmp_path: Path) -> None:
    def made(update: int) -> list[Path]:
        film = tmp_path / VIDEO_FOLDER / f"update_{update:09d}_episode_0.mp4"
        return [evaluation_file(tmp_path, update), picture_file(tmp_path, Q_LANDSCAPE, update), film]

    snapshots = [pending_file(tmp_path, update, kind) for update in (20, 30) for kind in ("evaluations", VIDEO_FOLDER)]
    own = tmp_path / VIDEO_FOLDER / "best_moments.mp4"
    for path in (*made(20), *made(30), *snapshots, own):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    assert set_aside_after(tmp_path, 20) == made(30)
    assert set_aside_after(tmp_path, 20) == []
    moved = [path.parent / "superseded" / path.name for path in made(30)]
    assert [path.read_text() for path in moved] == [path.name for path in made(30)]
    found = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*made(20), *moved, *snapshots[:2], own}
    assert (list(evaluation_files(tmp_path)), list(picture_files(tmp_path, Q_LANDSCAPE))) == ([20], [20])
    assert video_files(tmp_path) == [own, made(20)[2]]


def test_a_snapshot_of_a_later_update_is_gone_also_where_a_file_cannot_be_set_aside(tmp_path: Path) -> None:
    evaluation, snapshot = evaluation_file(tmp_path, 30), pending_file(tmp_path, 30)
    for path in (evaluation, snapshot):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (evaluation.parent / "superseded").touch()  # no folder can be made here
    with pytest.raises(OSError, match="superseded"):
        set_aside_after(tmp_path, 20)
    assert (evaluation.exists(), snapshot.exists()) == (True, False)
