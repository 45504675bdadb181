"""Where a run's files lie: what is written is found again."""

from __future__ import annotations

from pathlib import Path

from tql_lightning.run_folder import (
    ATTENTION_MAP,
    Q_LANDSCAPE,
    VIDEO_FOLDER,
    evaluation_file,
    evaluation_files,
    picture_file,
    picture_files,
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
