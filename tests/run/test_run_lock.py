"""One run at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tql_lightning.cli.main import main
from tql_lightning.run.folder import LOCK_FILE
from tql_lightning.run.lock import RunLockedError, only_run_in

HOLD = """
import sys
from pathlib import Path
from tql_lightning.run.lock import only_run_in
with only_run_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Starts a process that holds the folder's lock."""
    pipe = subprocess.PIPE  # what it reads from ends with the tests
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_by_name_until_the_first_ends_even_by_kill(
    command_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "--config", "tiny.yaml", "--data.dataset=tests.toy.toy_dataset", "--trainer.logger=false"]
    first = holder(command_folder / "run")
    try:
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert f"run is in use by another run (process {first.pid} on " in message
        assert "--trainer.default_root_dir" in message
        measuring = ["validate", *arguments[1:]]
        assert main([each for each in measuring if "logger" not in each]) == 2
        assert "is in use by another run" in capsys.readouterr().err
        (command_folder / "broken.ckpt").touch()
        assert main([*measuring, "--ckpt_path=broken.ckpt"]) == 2  # without a logger it may look meanwhile
        assert "broken.ckpt: damaged" in capsys.readouterr().err
        assert [path.name for path in (command_folder / "run").iterdir()] == [LOCK_FILE]
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert (command_folder / "run" / LOCK_FILE).exists()
    assert main([*arguments, "--trainer.max_steps=10"]) == 0
    assert not (command_folder / "run" / LOCK_FILE).exists()


def test_what_is_refused_leaves_no_folder_and_no_lock(tmp_path: Path) -> None:
    with (
        pytest.raises(RunLockedError, match=rf"process {os.getpid()} on "),
        only_run_in(tmp_path / "run"),
        only_run_in(tmp_path / "run"),
    ):
        pass
    assert not (tmp_path / "run").exists()
    with only_run_in(tmp_path / "run"):
        (tmp_path / "run" / "kept").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]


def test_a_lock_that_somebody_wrote_over_is_still_one(tmp_path: Path) -> None:
    with only_run_in(tmp_path):
        (tmp_path / LOCK_FILE).write_bytes(b"\xff{")
        with pytest.raises(RunLockedError, match="process unknown"), only_run_in(tmp_path):
            pass


def test_a_file_system_without_locks_is_told_of_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"no locks \(No locks available\); start no second"), only_run_in(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_folder_that_cannot_be_made_is_named_with_the_setting_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    expected = r"trainer\.default_root_dir: .*file/run cannot be written to \(Not a directory\); make it writable, or"
    with pytest.raises(OSError, match=expected), only_run_in(tmp_path / "file" / "run"):
        pass
