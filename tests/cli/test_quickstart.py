"""The quickstart: its bars on the real problem (slow), and what it tells of its runs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.command_line import run_tql
from tql_lightning.cli.quickstart import (
    ENVIRONMENT,
    EPISODES,
    EVALUATION_SEED,
    QuickstartError,
    Run,
    _train,
    run_quickstart,
)
from tql_lightning.data.collecting.collect import collect
from tql_lightning.evaluation.checkpoint import evaluate_checkpoint


def test_a_runs_progress_is_read_from_its_metrics(tmp_path: Path) -> None:
    run = Run(0, tmp_path)
    assert (run.progress(), run.trains()) == ((0, ""), False)
    (tmp_path / "config.yaml").touch()
    (tmp_path / "metrics.csv").write_text("step,train/td_loss,eval/return\n50,1.0,\n100,,-1200.4\n150,0.5,\n")
    assert (run.progress(), run.trains()) == ((150, "-1200"), True)
    (tmp_path / "metrics.csv").write_text("")
    assert run.progress() == (0, "")


@pytest.mark.slow
def test_a_run_that_fails_ends_the_quickstart_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQL_DATASETS", str(tmp_path / "datasets"))
    collect("Pendulum-v1", transitions=400, workers=1, output=str(tmp_path / "datasets" / "Pendulum-v1.npz"))
    (tmp_path / "datasets" / "Pendulum-v1.npz").write_bytes(b"damaged after the check")
    run = Run(0, tmp_path / "runs" / "seed_0")
    run.folder.mkdir(parents=True)
    with pytest.raises(QuickstartError, match=r"seed 0 failed; end of .*train\.log"):
        _train([run], parallel=1)


def test_a_signal_to_the_quickstart_ends_its_runs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TQL_DATASETS", str(tmp_path))
    collect(ENVIRONMENT, transitions=400, workers=1, output=str(tmp_path / f"{ENVIRONMENT}.npz"))
    before = signal.getsignal(signal.SIGTERM)
    runs = [Run(seed, tmp_path / f"seed_{seed}") for seed in (0, 1)]
    for run in runs:
        run.folder.mkdir()

    def signal_once_one_runs() -> None:
        while runs[0].process is None:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signal_once_one_runs, daemon=True).start()
    interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a job in the background and its runs
    try:
        with pytest.raises(KeyboardInterrupt):
            _train(runs, parallel=1)
    finally:
        signal.signal(signal.SIGINT, interrupts)
    assert runs[0].process is not None
    assert runs[0].process.poll() in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert runs[1].process is None
    assert "checkpoints in" not in capsys.readouterr().err  # there are none yet
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_the_quickstart_did_not_make_is_never_replaced(tmp_path: Path) -> None:
    checkpoint = tmp_path / "seed_1" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("weeks of work")
    with pytest.raises(QuickstartError, match=r"seed_1 holds what the quickstart did not make"):
        run_quickstart([0, 1], tmp_path)
    assert checkpoint.read_text() == "weeks of work"
    assert not (tmp_path / "seed_0").exists()


@pytest.mark.parametrize(
    ("seeds", "parallel", "message"), [([-1], 1, "seeds"), ([0, 0], 1, "seeds"), ([0], 0, "parallel")]
)
def test_bad_arguments_are_refused_before_anything_starts(
    seeds: list[int], parallel: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(QuickstartError, match=f"{message}: expected"):
        run_quickstart(seeds, tmp_path / "runs", parallel)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tql_learns_from_bad_data_and_cloning_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQL_DATASETS", str(tmp_path / "datasets"))
    finished = run_tql(tmp_path, "quickstart", "--output=runs", timeout=800)  # its memory, not that of the tests
    assert finished.returncode == 0, finished.stderr
    result = json.loads((tmp_path / "runs" / "result.json").read_text())
    assert len(result["tql"]["per_seed"]) == 3
    assert min(result["tql"]["per_seed"]) >= -200
    assert result["behaviour_flow"]["mean_return"] <= -800
    assert -1150 < result["data"]["mean_return"] < -1050
    assert result["peak_memory_mb"] <= 1536
    assert result["seconds"] <= 180
    report = (tmp_path / "runs" / result["report"]).read_text()
    assert "<h1>TQL report</h1>" in report
    assert report.count('src="data:video/mp4') == 2
    for name in ("return", "attention_entropy", "losses"):
        assert (tmp_path / "runs" / f"{name}.png").is_file()
    for seed in (0, 1, 2):
        folder = tmp_path / "runs" / f"seed_{seed}"
        assert (folder / "config.yaml").is_file()
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert list(folder.glob("tensorboard/events*"))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tql_learns_from_bad_data_also_in_bfloat16(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQL_DATASETS", str(tmp_path))
    collect(ENVIRONMENT, output=str(tmp_path / f"{ENVIRONMENT}.npz"))
    changes = (f"--seed_everything={seed}", "--trainer.default_root_dir=run", "--trainer.precision=bf16-mixed")
    finished = run_tql(tmp_path, "fit", "--config", "quickstart", *changes, timeout=2900)
    assert finished.returncode == 0, finished.stderr[-2000:]
    found = evaluate_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", EPISODES, EVALUATION_SEED)
    assert found["return"] >= -200
