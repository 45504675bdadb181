"""Draws success against updates for the methods of a benchmark, over all of its seeds, and prints the last figures.

    tql benchmark laptop --output runs/laptop
    python -m benchmarks.success runs/laptop --output success.png

A point is the share of successful episodes of all seeds at one update, with the exact 95 % interval of that share. An
update at which a seed has no evaluation yet is left out.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl

from tql_lightning.benchmark.plan import read_plan
from tql_lightning.evaluation.metrics import rate_interval
from tql_lightning.run.folder import evaluation_files

Curve = dict[int, tuple[int, int]]  # by update: successes, episodes


def success_curve(folders: list[Path]) -> Curve:
    """Successes and episodes of all of a method's seeds, at the updates where each has been evaluated."""
    seeds = [evaluation_files(folder) for folder in folders]
    curve = {}
    for update in sorted(set.intersection(*map(set, seeds))):
        outcomes = [each for files in seeds for each in json.loads(files[update].read_text())["successes"]]
        curve[update] = (sum(map(bool, outcomes)), len(outcomes))
    return curve


def interval(successes: int, episodes: int) -> tuple[float, float, float]:
    """Share of successes and its exact 95 % interval, in percent."""
    low, high = rate_interval(successes, episodes)
    return 100 * successes / episodes, 100 * low, 100 * high


def benchmark_curves(output: Path) -> dict[str, dict[str, tuple[int, Curve]]]:
    """Seeds and curve by task and method, of the runs that have been evaluated."""
    folders: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for run in read_plan(output)[1]:
        if evaluation_files(output / run.folder):
            folders[run.task][run.method].append(output / run.folder)
    return {
        task: {method: (len(seeds), success_curve(seeds)) for method, seeds in methods.items()}
        for task, methods in folders.items()
    }


def draw(curves: dict[str, dict[str, tuple[int, Curve]]], path: Path) -> None:
    """Draws one panel for each task."""
    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(curves), 3.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True).flatten()
    colours = {method: f"C{i}" for i, method in enumerate(sorted({name for each in curves.values() for name in each}))}
    for panel, (task, methods) in zip(panels, curves.items(), strict=True):
        for method, (seeds, curve) in methods.items():
            share, low, high = zip(*(interval(*counts) for counts in curve.values()), strict=True)
            label = f"{method} ({seeds} seed{'s' if seeds > 1 else ''})"
            panel.plot(list(curve), share, marker="o", markersize=3, color=colours[method], label=label)
            panel.fill_between(list(curve), low, high, color=colours[method], alpha=0.12, linewidth=0)
        panel.set(title=task, xlabel="updates", ylim=(0, 100))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    panels[0].set_ylabel("success (%), 95 % interval over episodes")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Draws the figure and prints the share after the last update."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path, help="folder of tql benchmark")
    parser.add_argument("--output", type=Path, default=Path("success.png"))
    arguments = parser.parse_args()
    curves = benchmark_curves(arguments.benchmark)
    draw(curves, arguments.output)
    print("| task | method | seeds | updates | success, 95 % interval over episodes |\n|---|---|---:|---:|---:|")
    for task, methods in curves.items():
        for method, (seeds, curve) in methods.items():
            update, counts = max(curve.items())
            share, low, high = interval(*counts)
            print(f"| {task} | {method} | {seeds} | {update:,} | {share:.0f} % [{low:.0f}, {high:.0f}] |")


if __name__ == "__main__":
    main()
