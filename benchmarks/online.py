"""From a short offline run to the pendulum itself, and from nothing with the same steps: return, time and throughput.

    python -m benchmarks.online                 # six runs, one after the other; a table
    python -m benchmarks.online --seeds 0 --output runs/online

The runs are those of ``--config quickstart --config online``; those from nothing have no offline updates and an empty
buffer, whose first 200 steps are random. The dataset is collected if it is not there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from tql_lightning.run.folder import evaluation_files
from tql_lightning.run.metrics_csv import read_metrics

NOTHING = ("--trainer.max_steps=0", "--online.mode=empty", "--online.start_steps=200", "--online.random_steps=200")


def tql(*arguments: str) -> None:
    """Runs a command line in a process of its own."""
    command = [sys.executable, "-m", "tql_lightning", *arguments]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def measured(folder: Path, seed: int, *more: str) -> str:
    """Trains, and returns a row of the table."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    tql(
        *("fit", "--config", "quickstart", "--config", "online", f"--seed_everything={seed}"),
        *(f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false", *more),
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    series = read_metrics(folder / "metrics.csv")
    updates, env_steps = series["env_steps"]
    at_start = max(update for update, steps in zip(updates, env_steps, strict=True) if not steps)
    evaluations = {update: json.loads(path.read_text()) for update, path in evaluation_files(folder).items()}
    returns = [evaluations[update]["summary"] for update in (at_start, max(evaluations))]
    cells = [f"{each['return']:.0f} [{each['return_low']:.0f}, {each['return_high']:.0f}]" for each in returns]
    figures = ("train/updates_per_second", "online/env_steps_per_second", "online/share_of_time")
    speeds = [f"{series[name][1][-1]:.3g}" for name in figures]
    times = [f"{time.perf_counter() - started:.0f}", f"{processor:.0f}"]
    return f"| {' | '.join([folder.name, str(seed), *cells, f'{max(env_steps):.0f}', *times, *speeds])} |"


def main() -> None:
    """Makes the runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/online_benchmark"))
    arguments = parser.parse_args()
    data = Path(os.environ.setdefault("TQL_DATASETS", "datasets")) / "Pendulum-v1.npz"
    if not data.is_file():
        tql("collect", "Pendulum-v1", "--output", str(data))
    rows = [
        measured(arguments.output / f"{name}_{seed}", seed, *more)
        for name, more in (("offline_to_online", ()), ("from_nothing", NOTHING))
        for seed in arguments.seeds
    ]
    print(
        "| run | seed | return before | return after | environment steps | seconds | processor seconds | updates per "
        "second | environment steps per second | share of time in these |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
