"""How long `tql fit` takes before it trains, and before it refuses to.

    python -m benchmarks.start --repeats 5

Processor time (user and system) of a new process on one thread, median of the repeats:

python      an interpreter that does nothing
refused     a start in the folder of another run
mistake     an unknown option, which the parser must find
help        `tql fit --help`
one update  a small TQL on 200 random transitions, without callbacks, to the end of its only update
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE = '''"""A dataset of random transitions."""

import numpy as np

from tql_lightning import TransitionDataset


def data(rows: int = 200) -> TransitionDataset:
    """Random transitions in episodes of 20."""
    rng = np.random.default_rng(0)
    columns = {"observations": rng.normal(size=(rows, 3)), "actions": rng.uniform(-1, 1, size=(rows, 1))}
    ends = np.arange(rows) % 20 == 19
    return TransitionDataset.from_arrays(
        **columns, rewards=np.zeros(rows), terminations=np.zeros(rows), truncations=ends, name="random"
    )
'''
FIT = ("-m", "tql_lightning", "fit", "--data.dataset=random_data.data")
SMALL = (
    "--trainer.max_steps=1",
    "--trainer.callbacks=null",
    "--trainer.accelerator=cpu",
    "--model.critic.hidden_dim=32",
)
CASES = {
    "python": ("-c", "pass"),
    "refused": (*FIT, "--trainer.default_root_dir=there"),
    "mistake": (*FIT, "--trainer.max_step=1"),
    "help": (*FIT[:3], "--help"),
    "one update": (*FIT, *SMALL),
}


def processor_seconds(arguments: tuple[str, ...], folder: Path) -> float:
    """Processor time of a new interpreter, to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5)
    repeats = options.parse_args().repeats
    print("| start | processor seconds | range |\n|---|---:|---:|")
    for name, arguments in CASES.items():
        found = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                (folder / "random_data.py").write_text(MODULE)
                (folder / "there").mkdir()
                (folder / "there" / "config.yaml").touch()
                found.append(processor_seconds(arguments, folder))
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f} to {max(found):.2f} |", flush=True)


if __name__ == "__main__":
    main()
