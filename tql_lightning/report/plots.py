"""Plots of runs, from their metrics.csv, and of datasets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tql_lightning.run.folder import METRICS_FILE
from tql_lightning.run.metrics_csv import Series, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LOSSES = ("td_loss", "entropy_loss", "temperature_loss", "behaviour_flow_loss", "distillation_loss", "q_loss")


def plot_run(folder: Path) -> list[Path]:
    """Draws a run's curves into its folder; returns the pictures."""
    return plot_runs({folder.name: folder}, folder)


def plot_runs(runs: Mapping[str, Path], output: Path) -> list[Path]:
    """Draws the curves of several runs into ``output``, with one colour per run.

    Args:
        runs: Folders with a metrics.csv, by name in the legend.
        output: Folder for return.png, attention_entropy.png and losses.png; pictures without metrics are left out.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    series = {name: read_metrics(folder / METRICS_FILE) for name, folder in runs.items()}
    drawn = [
        _returns(series, output / "return.png"),
        _entropies(series, output / "attention_entropy.png"),
        _losses(series, output / "losses.png"),
    ]
    return [path for path in drawn if path is not None]


def plot_dataset(title: str, figures: Mapping[str, Any], path: Path) -> Path:
    """Draws a histogram of each quantity of a dataset, given its values by name."""
    import matplotlib as mpl

    mpl.use("Agg")
    figure, axes = _figure(1, len(figures), len(figures))
    for axis, (name, values) in zip(axes, figures.items(), strict=True):
        axis.hist(values, bins=50)
        axis.set_xlabel(name)
    axes[0].set_ylabel("count")
    figure.suptitle(title)
    return _save(figure, path)


def _figure(rows: int, columns: int, used: int) -> tuple[Figure, list[Axes]]:
    """A figure and its ``used`` first axes; the others are left out."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(4.5 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes[used:]:
        axis.remove()
    axes = axes[:used]
    for axis in axes:
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _returns(runs: Mapping[str, Series], path: Path) -> Path | None:
    names = [name for name in ("eval/return", "eval/success_rate") if any(name in run for run in runs.values())]
    if not names:
        return None
    figure, axes = _figure(1, len(names), len(names))
    for axis, name in zip(axes, names, strict=True):
        for label, run in runs.items():
            if name in run:
                (line,) = axis.plot(*run[name], marker="o", markersize=3, label=label)
                low, high = run.get(f"{name}_low"), run.get(f"{name}_high")
                if low and high and low[0] == high[0]:
                    axis.fill_between(*low, high[1], color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_title(f"{name.removeprefix('eval/').replace('_', ' ')}, 95 % interval over episodes")
        axis.legend()
    return _save(figure, path)


def _entropies(runs: Mapping[str, Series], path: Path) -> Path | None:
    prefix = "train/attention_entropy/"
    keys = sorted({name.removeprefix(prefix) for run in runs.values() for name in run if name.startswith(prefix)})
    if not keys:
        return None
    figure, axes = _figure(-(-len(keys) // 2), min(len(keys), 2), len(keys))
    for axis, key in zip(axes, keys, strict=True):
        for index, (label, run) in enumerate(runs.items()):
            axis.plot(*run.get(prefix + key, ([], [])), color=f"C{index}", label=label)
            target = run.get(f"train/target_entropy/{key}")
            if target:
                axis.plot(*target, "k--", linewidth=1, label="target" if index == len(runs) - 1 else None)
        axis.set_ylim(bottom=0.0)  # 0 is collapse
        axis.set_title(f"attention entropy, {key.replace('/', ', ').replace('_', ' ')} (nats)")
        axis.legend()
    return _save(figure, path)


def _losses(runs: Mapping[str, Series], path: Path) -> Path | None:
    columns = {name: [run[f"train/{name}"][1] for run in runs.values() if f"train/{name}" in run] for name in LOSSES}
    # A loss that never changes, such as that of entropy control which is switched off, would be an empty picture.
    names = [name for name, values in columns.items() if any(len({*each}) > 1 for each in values)]
    if not names:
        return None
    figure, axes = _figure(-(-len(names) // 3), min(len(names), 3), len(names))
    for axis, name in zip(axes, names, strict=True):
        for label, run in runs.items():
            axis.plot(*run.get(f"train/{name}", ([], [])), label=label, linewidth=1)
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.set_title(name.replace("_", " "))
    axes[0].legend()
    return _save(figure, path)
