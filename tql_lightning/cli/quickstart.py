"""The quickstart: TQL learns to swing up a pendulum from bad data, over several seeds."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tql_lightning.cli.configs import packaged_configs
from tql_lightning.data.collecting.collect import collect, datasets_folder
from tql_lightning.data.sources.npz import load_npz
from tql_lightning.report.plots import plot_runs
from tql_lightning.run.baselines import CLONING, record_baseline
from tql_lightning.run.folder import CONFIG_FILE, LOG_FILE, METRICS_FILE, VIDEO_FOLDER
from tql_lightning.run.metrics_csv import read_metrics
from tql_lightning.run.provenance import peak_memory_bytes
from tql_lightning.system.files import write_text_whole
from tql_lightning.trust.yaml_text import read_yaml

CONFIG = "quickstart"
ENVIRONMENT = "Pendulum-v1"
EPISODES = 100
REPORT_FILE = "report.html"
EVALUATION_SEED = 1000  # not the seed of the evaluations during training
POLL_SECONDS = 0.5
LABELS = {"data": "dataset", "behaviour_flow": "behaviour flow", "tql": "TQL"}
LONGEST_END = 1500  # characters of a failed run's log that are shown


class QuickstartError(ValueError):
    """A run failed or may not start; the message gives the reason."""


@dataclass
class Run:
    """One seed's training, in a process of its own."""

    seed: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Everything the run printed."""
        return self.folder / LOG_FILE

    def trains(self) -> bool:
        """Whether the run has imported everything and written its configuration."""
        return (self.folder / CONFIG_FILE).is_file()

    def progress(self) -> tuple[int, str]:
        """Returns the updates in metrics.csv, and the return of the last evaluation as text, or ""."""
        file = self.folder / METRICS_FILE
        if not file.is_file():
            return 0, ""
        series = read_metrics(file)
        updates = max((steps[-1] for steps, _ in series.values()), default=0)
        _, returns = series.get("eval/return", ([], []))
        return updates, f"{returns[-1]:.0f}" if returns else ""


def run_quickstart(seeds: Sequence[int], output: Path, parallel: int | None = None) -> dict[str, Any]:
    """Collects the dataset unless it exists, trains each seed, evaluates, and prints a table.

    Args:
        seeds: Seeds, one run each.
        output: Folder for the runs (``seed_0`` ...), result.json, report.html and the pictures over all seeds.
        parallel: Number of runs at once; None for two, or one on a single core.

    Returns:
        Contents of result.json.

    Raises:
        QuickstartError: A run failed, an argument is out of its range, or a folder holds files that the quickstart
            did not write and so does not replace.
    """
    parallel = min(2, len(os.sched_getaffinity(0))) if parallel is None else parallel
    runs = [Run(seed, output / f"seed_{seed}") for seed in seeds]
    _check(runs, parallel)
    dataset = datasets_folder() / f"{ENVIRONMENT}.npz"
    if not dataset.exists():
        collect(ENVIRONMENT, output=str(dataset))
    returns = load_npz(str(dataset)).episode_returns()
    print(f"dataset {dataset}: {len(returns)} episodes, mean return {returns.mean():.0f}, best {returns.max():.0f}")

    start = time.monotonic()
    for run in runs:
        shutil.rmtree(run.folder, ignore_errors=True)
        run.folder.mkdir(parents=True)
    _train(runs, parallel)

    # The runs used memory together with this process; evaluation below uses memory alone.
    own, largest_run = peak_memory_bytes(), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    peak = own + min(len(runs), parallel) * largest_run
    figures = _figures(runs, returns)
    figures["seconds"] = round(time.monotonic() - start, 1)
    figures["peak_memory_mb"] = round(max(peak, peak_memory_bytes()) / 2**20, 1)
    from tql_lightning.report.page import write_report  # imports SciPy: after training, so as not to delay it

    _film(runs[0])
    report = write_report([run.folder for run in runs], output / REPORT_FILE)
    figures["report"] = REPORT_FILE
    result = output / "result.json"
    write_text_whole(result, json.dumps(figures, indent=2) + "\n")
    pictures = plot_runs({f"seed {run.seed}": run.folder for run in runs}, output)
    _print_table(figures)
    print("\nwrote:")
    for path in (result, report, *pictures, *(run.folder for run in runs)):
        print(f"  {path}")
    print(f"\nopen {report} in a browser: scores, curves, entropy, pictures, configuration")
    print(f"learning curves live: tensorboard --logdir {output}")
    return figures


def _check(runs: Sequence[Run], parallel: int) -> None:
    seeds = [run.seed for run in runs]
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise QuickstartError(f"seeds: expected one or more different numbers of at least 0, found {seeds}")
    if parallel < 1:
        raise QuickstartError(f"parallel: expected at least 1, found {parallel}")
    for run in runs:
        if run.folder.exists() and any(run.folder.iterdir()) and not run.log.exists():
            raise QuickstartError(
                f"output: {run.folder} holds what the quickstart did not make, and would replace; "
                "remove it, or choose another --output"
            )


# ---------------------------------------------------------------------- training


def _train(runs: Sequence[Run], parallel: int) -> None:
    waiting = deque(runs)
    running: list[Run] = []
    threads = max(1, len(os.sched_getaffinity(0)) // min(parallel, len(runs)))
    total = len(runs) * int(read_yaml(packaged_configs()[CONFIG].read_text())["trainer"]["max_steps"])
    # Handle SIGTERM like Ctrl-C: the runs have process groups of their own and would go on.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    bar = tqdm(total=total, desc="training", unit=" updates", smoothing=0.05)
    try:
        while waiting or running:
            # Start one after another: two imports at once delay both.
            if waiting and len(running) < parallel and all(run.trains() for run in running):
                running.append(_start(waiting.popleft(), threads))
            time.sleep(POLL_SECONDS)
            _show(bar, runs)
            for run in [run for run in running if run.process is not None and run.process.poll() is not None]:
                running.remove(run)
                if run.process is not None and run.process.returncode:
                    end = run.log.read_text(errors="replace").replace("\r", "\n")[-LONGEST_END:]
                    raise QuickstartError(f"training with seed {run.seed} failed; end of {run.log}:\n{end}")
    except KeyboardInterrupt:
        for run in runs:  # each saves a checkpoint after its current update
            if run.process is not None:
                run.process.terminate()  # SIGINT would be ignored until training starts if this process ignores it
        for run in runs:
            if run.process is not None:
                run.process.wait()
        folders = ", ".join(str(run.folder) for run in runs if (run.folder / "checkpoints" / "last.ckpt").is_file())
        if folders:
            print(
                f"\nStopped; checkpoints in {folders}. Continue one with: tql fit --config {CONFIG} "
                "--ckpt_path=last --trainer.default_root_dir=FOLDER (make quickstart would replace them)",
                file=sys.stderr,
            )
        raise
    finally:
        for run in runs:
            if run.process is not None and run.process.poll() is None:
                run.process.terminate()
        signal.signal(signal.SIGTERM, before)
        _show(bar, runs)
        bar.close()


def _start(run: Run, threads: int) -> Run:
    command = [sys.executable, "-m", "tql_lightning", "fit", "--config", CONFIG]
    command += [f"--seed_everything={run.seed}", f"--trainer.default_root_dir={run.folder}"]
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {"PYTHONUNBUFFERED": "1"}
    with run.log.open("wb") as log:
        run.process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    return run


def _show(bar: tqdm[Any], runs: Sequence[Run]) -> None:
    progress = {run.seed: run.progress() for run in runs}
    bar.set_postfix_str(", ".join(f"seed {seed}: {last}" for seed, (_, last) in progress.items() if last), False)
    made = sum(updates for updates, _ in progress.values()) - bar.n
    if made > 0:  # else a bar in a file would be written again and again
        bar.update(made)


# ---------------------------------------------------------------------- figures


def _figures(runs: Sequence[Run], data_returns: NDArray[np.float64]) -> dict[str, Any]:
    from tql_lightning.evaluation.checkpoint import (
        evaluate_checkpoint,  # imports torch: after training, so as not to delay it
    )

    figures: dict[str, Any] = {
        "data": {
            **_mean(data_returns),
            "best_return": float(data_returns.max()),
            "episodes": len(data_returns),
            "per_seed": [],
        }
    }
    for name, extraction in (("behaviour_flow", "behaviour_flow"), ("tql", "fql")):
        entries = [
            evaluate_checkpoint(
                run.folder / "checkpoints" / "last.ckpt", EPISODES, EVALUATION_SEED, extraction, num_envs=EPISODES
            )
            for run in runs
        ]
        per_seed = [entry["return"] for entry in entries]
        if name == "behaviour_flow":
            for run, entry in zip(runs, entries, strict=True):
                record_baseline(run.folder, CLONING, entry)
        figures[name] = {
            **_mean(np.asarray(per_seed)),
            "per_seed": per_seed,
        }
    figures["seeds"] = [run.seed for run in runs]
    figures["episodes_per_seed"] = EPISODES
    return figures


def _film(run: Run) -> None:
    """Films one episode of the behaviour flow and one of the policy, where the machine can render."""
    from tql_lightning.algorithms.loading import load_checkpoint
    from tql_lightning.evaluation.envs import EnvError  # imports torch, as above
    from tql_lightning.evaluation.videos import VideoError, film_episodes, require_video

    try:
        require_video()
        model, _ = load_checkpoint(run.folder / "checkpoints" / "last.ckpt")
        for name, actor in (("behaviour_flow", model.actor("behaviour_flow")), ("tql", model.actor("fql"))):
            film_episodes(actor, ENVIRONMENT, 1, EVALUATION_SEED, run.folder / VIDEO_FOLDER, name)
    except (VideoError, EnvError) as error:
        print(f"no videos in the report: {error}", file=sys.stderr)


def _mean(returns: NDArray[np.float64]) -> dict[str, float]:
    from tql_lightning.evaluation.metrics import mean_with_error

    return dict(zip(("mean_return", "stderr"), mean_with_error(returns), strict=True))


def _print_table(figures: dict[str, Any]) -> None:
    print(f"\n{ENVIRONMENT}: mean return, {EPISODES} episodes a seed ({figures['seconds']:.0f} s, ", end="")
    print(f"at most {figures['peak_memory_mb']:.0f} MB)")
    print(f"{'':16}{'mean':>10}{'stderr':>10}{'seeds':>8}")
    for name, label in LABELS.items():
        row = figures[name]
        seeds = len(row["per_seed"]) or "-"
        print(f"{label:16}{row['mean_return']:10.1f}{row['stderr']:10.1f}{seeds:>8}")
