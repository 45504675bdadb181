"""A run's folder from elsewhere leads nothing that a run writes, and nothing that a report shows, out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.command_line import TINY, call_tql
from tests.report.runs import make_run
from tql_lightning.report.runs import ReportError, read_runs
from tql_lightning.run.links import FILES, FOLDERS
from tql_lightning.run.lock import only_run_in

DATA = "--data.dataset=tests.toy.toy_dataset"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of the user's outside the run's folder."""
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    return path


@pytest.mark.parametrize("name", [*FILES, "checkpoints/last.ckpt", "evaluations/pending/update_000000005.ckpt"])
def test_a_file_of_a_run_that_is_a_link_is_not_written_through(name: str, precious: Path, tmp_path: Path) -> None:
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(precious)
    with pytest.raises(ValueError, match="file or folder of the run itself, found"), only_run_in(tmp_path / "run"):
        pass
    assert precious.read_text() == "precious"
    assert link.is_symlink()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_a_run_that_is_a_link_is_not_written_through(name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="found a symbolic link"), only_run_in(tmp_path / "run"):
        pass
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", [*FILES, "checkpoints/last.ckpt", "tensorboard/events.out.tfevents.1.x"])
def test_a_pipe_in_the_place_of_a_runs_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    pipe = tmp_path / "run" / name
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"expected a file of|found a pipe"), only_run_in(tmp_path / "run"):
        pass


def test_a_link_that_stays_inside_or_leads_to_itself_is_not_written_through(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for target in ("config.yaml", "environment.json", "nowhere"):
        link = run / "environment.json"
        link.symlink_to(target)
        with pytest.raises(ValueError, match="found a symbolic link"), only_run_in(run):
            pass
        link.unlink()


def test_a_lock_that_is_another_files_second_name_is_not_emptied(precious: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.link(precious, tmp_path / "run" / "run.lock")
    with (
        pytest.raises(ValueError, match=r"run\.lock: expected a file of this run"),
        only_run_in(tmp_path / "run"),
    ):
        pass
    assert precious.read_text() == "precious"


def test_a_folder_behind_a_link_and_links_of_the_users_are_none_of_a_runs(precious: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "data.npz").symlink_to(precious)
    with only_run_in(tmp_path / "run"):
        assert (tmp_path / "disk" / "run.lock").is_file()


def test_fit_tells_of_a_link_in_a_few_words(precious: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "environment.json").symlink_to(precious)
    refused = call_tql(tmp_path, "fit", "--config", "tiny.yaml", DATA)
    assert refused.returncode == 2
    assert "environment.json: expected a file or folder of the run itself" in refused.stderr
    assert len(refused.stderr) < 1000
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("name", ["environment.json", "config.yaml", "metrics.csv"])
def test_a_report_shows_nothing_that_a_link_leads_to(name: str, precious: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious)
    with pytest.raises(ReportError, match="expected a file in the run's folder, found a link out of it"):
        read_runs([run])


def test_a_report_reads_links_that_stay_inside(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").rename(run / "kept.csv")
    (run / "metrics.csv").symlink_to("kept.csv")
    assert read_runs([run])[0].updates > 0


def test_what_a_kill_left_half_written_is_removed_by_the_next_run(tmp_path: Path) -> None:
    left = [tmp_path / "run" / name for name in (".config.yaml.x.part", "evaluations/.update_000000008.json.y.part")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    kept = tmp_path / "run" / "evaluations" / "update_000000008.json"
    kept.write_text("{}")
    with only_run_in(tmp_path / "run"):
        assert not any(path.exists() for path in left)
        assert kept.exists()
