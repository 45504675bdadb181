"""Does attention collapse as the critic widens, and does entropy control hold it? Trains, measures, draws, tabulates.

    python benchmarks/collapse.py pendulum cube-single --output runs/collapse
    python benchmarks/collapse.py pendulum --variants dense rational low_rank --controls none exp --seeds 0 1 2
    python benchmarks/collapse.py pendulum --widths 256 --set model.optimisation.learning_rate=1e-4 model.tau=0.01

Each run is `tql fit` in a process of its own; a run that is complete is not trained again, so the command can be
stopped and repeated, and repeated with more updates where the learning rate is constant. Other settings are another
run. It writes ``collapse.md`` and for each dataset ``collapse_<dataset>.png`` (for a variant
``collapse_<dataset>_<variant>.png``), of all that its arguments name; with several seeds also means over them, as a
table in ``collapse.md`` and as ``collapse_<dataset>_over_seeds.png``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from tql_lightning import TransitionDataset
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.algorithms.tql import TQL
from tql_lightning.data.sources.npz import load_npz
from tql_lightning.data.sources.ogbench import load_ogbench
from tql_lightning.evaluation.checkpoint import evaluate_checkpoint
from tql_lightning.evaluation.landscape import smoothness
from tql_lightning.run.folder import METRICS_FILE
from tql_lightning.run.metrics_csv import Series, read_metrics
from tql_lightning.system.files import write_text_whole

HERE = Path(__file__).parent
PAIRS = 2_048  # dataset pairs that smoothness is measured at
TEMPERATURE = "tql_lightning.nn.temperature.AttentionTemperature"
CONTROLS = {
    "none": ["--model.entropy_control=null", "--model.optimisation.learning_rates={actor: 1e-3}"],
    "exp": [f"--model.entropy_control={TEMPERATURE}", "--model.entropy_control.init_args.form=exp"],
    "sign": [f"--model.entropy_control={TEMPERATURE}", "--model.entropy_control.init_args.form=sign"],
    "damped": [f"--model.entropy_control={TEMPERATURE}", "--model.entropy_control.init_args.form=sign"],
}

BLOCK = "--model.critic.init_args.block"
FEEDFORWARD = f"{BLOCK}.init_args.feedforward"
VARIANTS = {  # what differs from the plain critic
    "dense": [],
    "rational": [
        f"{BLOCK}=tql_lightning.nn.transformer.TransformerBlock",
        f"{FEEDFORWARD}=tql_lightning.nn.rational.RationalFeedForward",
    ],
    "low_rank": [  # in both blocks: the last one computes its layer for [VALUE] alone
        f"{BLOCK}=tql_lightning.nn.transformer.TransformerBlock",
        f"{FEEDFORWARD}=tql_lightning.nn.structured_feedforward.StructuredFeedForward",
        f"{FEEDFORWARD}.init_args.dense_blocks=0",
    ],
    "hl_gauss": ["--model.value_loss=tql_lightning.nn.value_loss.HLGauss"],
}


@dataclass(frozen=True)
class Problem:
    """A dataset and what differs in training on it."""

    config: str
    dataset: str
    batch_size: int
    episodes: int
    initial_temperature: float
    damping: float  # of the control "damped"

    @cache  # noqa: B019  (a few, for the life of the program)
    def load(self) -> TransitionDataset:
        """The transitions."""
        if self.config == "quickstart":
            return load_npz(self.dataset)
        return load_ogbench(self.dataset)


PROBLEMS = {
    "pendulum": Problem(
        "quickstart", "datasets/Pendulum-v1.npz", batch_size=64, episodes=20, initial_temperature=3.0, damping=250.0
    ),
    "cube-single": Problem(
        "ogbench/cube-single", "cube-single-play", batch_size=32, episodes=10, initial_temperature=1.0, damping=10.0
    ),
    "cube-double": Problem(
        "ogbench/cube-double", "cube-double-play", batch_size=32, episodes=10, initial_temperature=1.0, damping=10.0
    ),
}


@dataclass(frozen=True)
class Run:
    """One critic: a width, a control, a seed and a variant on a dataset, and settings "key=value" of one's own."""

    problem: str
    width: int
    control: str
    seed: int
    updates: int
    output: Path
    settings: tuple[str, ...] = ()
    variant: str = "dense"

    @property
    def folder(self) -> Path:
        """Where it trains; other settings are another place."""
        kind = "" if self.variant == "dense" else f"{self.variant}_"
        name = f"{kind}width_{self.width}_{self.control}_seed_{self.seed}"
        if self.settings:
            name += f"_{hashlib.sha256(repr(self.settings).encode()).hexdigest()[:8]}"
        return self.output / self.problem / name

    @property
    def checkpoint(self) -> Path:
        """The last one."""
        return self.folder / "checkpoints" / "last.ckpt"

    def train(self) -> None:
        """Runs `tql fit` unless it already reached its end; what it prints goes to train.log.

        Raises:
            RuntimeError: it failed; the message names its log.
        """
        if self.checkpoint.exists() and load_checkpoint(self.checkpoint)[1]["global_step"] >= self.updates:
            return
        problem = PROBLEMS[self.problem]
        command = [sys.executable, "-m", "tql_lightning", "fit", "--config", problem.config]
        command += ["--config", str(HERE / "collapse.yaml"), f"--trainer.max_steps={self.updates}"]
        command += [f"--trainer.default_root_dir={self.folder}", f"--seed_everything={self.seed}"]
        command += ["--model.critic=tql_lightning.nn.critic.TransformerCritic"]
        command += [f"--model.critic.init_args.hidden_dim={self.width}", *VARIANTS[self.variant]]
        command += CONTROLS[self.control]
        if self.control != "none":
            damping = problem.damping if self.control == "damped" else 0.0
            command += [f"--model.entropy_control.init_args.initial={problem.initial_temperature}"]
            command += [f"--model.entropy_control.init_args.damping={damping}"]
        command += [f"--data.batch_size={problem.batch_size}"]
        command += [f"--{setting}" for setting in self.settings]
        command += ["--ckpt_path=last"] if self.checkpoint.exists() else []
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "train.log"
        with file.open("a") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            code = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
        if code:
            raise RuntimeError(f"{file}: training ended with exit code {code}; its last lines say why")


def dataset_smoothness(model: TQL, dataset: TransitionDataset) -> tuple[float, float]:
    """Slope and roughness (see `landscape.smoothness`) at evenly spaced transitions of a dataset."""
    rows = torch.linspace(0, len(dataset) - 1, min(PAIRS, len(dataset))).long()
    observations, actions = torch.as_tensor(dataset.observations)[rows], torch.as_tensor(dataset.actions)[rows]
    return smoothness(model.critic, observations, actions)


def measure(run: Run) -> dict[str, Any]:
    """A finished run's figures; kept in its folder, since twenty episodes take seconds."""
    model, checkpoint = load_checkpoint(run.checkpoint)
    updates, file = checkpoint["global_step"], run.folder / "measured.json"
    if file.exists() and (kept := json.loads(file.read_text()))["updates"] == updates:
        return dict(kept)
    series = read_metrics(run.folder / METRICS_FILE)
    names = entropy_names(series)
    slope, roughness = dataset_smoothness(model, PROBLEMS[run.problem].load())
    played = evaluate_checkpoint(run.checkpoint, PROBLEMS[run.problem].episodes, seed=1000, num_envs=10)
    figures = {
        "updates": updates,
        "entropy": {name: tail(series, f"train/attention_entropy/{name}") for name in names},
        "target": {
            name: tail(series, target) for name in names if (target := f"train/target_entropy/{name}") in series
        },
        "slope": slope,
        "roughness": roughness,
        "q": tail(series, "train/q_mean"),
        "return": played["return"],
        "return_stderr": played["return_stderr"],
    }
    write_text_whole(file, json.dumps(figures, indent=1) + "\n")
    return figures


def table_row(run: Run, figures: Mapping[str, Any]) -> str:
    """A finished run's line of the table."""
    entropies = []
    for name, entropy in figures["entropy"].items():
        target = figures["target"].get(name)
        entropies.append(f"{entropy:.2f}" + ("" if target is None else f" ({entropy - target:+.2f})"))
    cells = [run.problem, run.variant, run.width, run.control, run.seed, figures["updates"], *entropies]
    cells += [f"{figures['slope']:.3f}", f"{figures['roughness']:.3f}", f"{figures['q']:.1f}"]
    cells += [f"{figures['return']:.1f} +- {figures['return_stderr']:.1f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


SUMMARISED = {  # column of the table over seeds: a run's number for it, and its format
    "mean entropy": (lambda figures: fmean(figures["entropy"].values()), ".2f"),
    "[VALUE], last layer": (lambda figures: list(figures["entropy"].values())[-1], ".2f"),
    "roughness": (lambda figures: figures["roughness"], ".4f"),
    "Q": (lambda figures: figures["q"], ".0f"),
    "return": (lambda figures: figures["return"], ".0f"),
}
Group = tuple[str, str, int, str]  # dataset, variant, width, control


def over_seeds(measured: Mapping[Run, Mapping[str, Any]]) -> dict[Group, dict[str, tuple[float, float, int]]]:
    """Mean, standard deviation and number of seeds of each figure in `SUMMARISED`, by group."""
    groups: dict[Group, list[Mapping[str, Any]]] = {}
    for run, figures in measured.items():
        groups.setdefault((run.problem, run.variant, run.width, run.control), []).append(figures)
    summary = {}
    for group, members in groups.items():
        columns = {name: [number(each) for each in members] for name, (number, _) in SUMMARISED.items()}
        summary[group] = {
            name: (fmean(values), stdev(values) if len(values) > 1 else math.nan, len(values))
            for name, values in columns.items()
        }
    return summary


def summary_lines(summary: Mapping[Group, Mapping[str, tuple[float, float, int]]]) -> list[str]:
    """The table over seeds: mean and standard deviation."""
    lines = ["| dataset | variant | width | control | seeds | " + " | ".join(SUMMARISED) + " |"]
    lines.append("|" + "---|" * 5 + "---:|" * len(SUMMARISED))
    for group, columns in sorted(summary.items()):
        seeds = max(number for _, _, number in columns.values())
        cells = [
            f"{mean:{SUMMARISED[name][1]}} ± {spread:{SUMMARISED[name][1]}}"
            for name, (mean, spread, _) in columns.items()
        ]
        lines.append("| " + " | ".join(map(str, [*group, seeds, *cells])) + " |")
    return lines


def draw_summary(problem: str, summary: Mapping[Group, Mapping[str, tuple[float, float, int]]], path: Path) -> None:
    """Figures against width: a colour per variant, broken lines without control, bars of a standard deviation."""
    from matplotlib.figure import Figure

    own = {group: columns for group, columns in summary.items() if group[0] == problem}
    variants = [each for each in VARIANTS if any(group[1] == each for group in own)]
    controls = [each for each in CONTROLS if any(group[3] == each for group in own)]
    names = ["mean entropy", "roughness", "return"]
    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for place, (variant, control) in enumerate(product(variants, controls)):
            widths = sorted(group[2] for group in own if (group[1], group[3]) == (variant, control))
            values = [own[problem, variant, width, control][name] for width in widths]
            axis.errorbar(
                [width * 1.02**place for width in widths],  # side by side
                [mean for mean, _, _ in values],
                yerr=[0.0 if math.isnan(spread) else spread for _, spread, _ in values],
                color=f"C{variants.index(variant)}",
                linestyle="--" if control == "none" else "-",
                marker="o",
                markersize=3,
                capsize=2,
                label=f"{variant.replace('_', ' ')}, {'no control' if control == 'none' else control}",
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(
            sorted({group[2] for group in own}), [str(width) for width in sorted({group[2] for group in own})]
        )
        axis.minorticks_off()
        axis.set_xlabel("width")
        axis.set_title({"mean entropy": "attention entropy, mean (nats)"}.get(name, name), fontsize=10)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def entropy_names(series: Series) -> list[str]:
    """Layers and token groups ("layer_0/value") whose entropy was logged."""
    prefix = "train/attention_entropy/"
    return sorted(name.removeprefix(prefix) for name in series if name.startswith(prefix))


def tail(series: Series, name: str, share: float = 0.1) -> float:
    """Mean over the last tenth of what was logged: one minibatch's entropy is noisy."""
    values = series[name][1]
    last = values[-max(1, round(share * len(values))) :]
    return sum(last) / len(last)


def draw(title: str, runs: Sequence[Run], path: Path) -> None:
    """Attention entropy against updates: a row per control, a column per layer and token group, a colour per width."""
    from matplotlib.figure import Figure

    series = {run: read_metrics(run.folder / METRICS_FILE) for run in runs}
    names = entropy_names(next(iter(series.values())))
    controls = [control for control in CONTROLS if any(run.control == control for run in runs)]
    widths = sorted({run.width for run in runs})
    figure = Figure(figsize=(3.4 * len(names), 2.6 * len(controls)), layout="constrained")
    axes = figure.subplots(len(controls), len(names), squeeze=False, sharex=True, sharey=True)
    for run, curves in series.items():
        for column, name in enumerate(names):
            axis = axes[controls.index(run.control), column]
            colour = f"C{widths.index(run.width)}"
            axis.plot(*curves[f"train/attention_entropy/{name}"], color=colour, linewidth=1, label=f"width {run.width}")
            if f"train/target_entropy/{name}" in curves:
                axis.plot(*curves[f"train/target_entropy/{name}"], "k--", linewidth=0.8)
            axis.set_title(f"{name.replace('/', ', ').replace('_', ' ')}; control: {run.control}", fontsize=9)
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("updates")
    for axis in axes[:, 0]:
        axis.set_ylabel("entropy (nats)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes[0, 0].legend(unique.values(), unique.keys(), fontsize=7)
    figure.suptitle(f"{title}: attention entropy; dashed: target")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Trains what is missing, then measures and reports everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="+", choices=PROBLEMS)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--controls", nargs="+", choices=CONTROLS, default=list(CONTROLS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["dense"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--updates", type=int, nargs="+", default=[3_000], help="of every run, or one for each control")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="runs at once, one thread each")
    parser.add_argument("--output", type=Path, default=Path("runs/collapse"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every tql fit")
    arguments = parser.parse_args()
    if len(arguments.updates) not in (1, len(arguments.controls)):
        parser.error(f"--updates: expected one, or one for each of {len(arguments.controls)} controls")
    updates = arguments.updates * (len(arguments.controls) if len(arguments.updates) == 1 else 1)
    runs = [
        Run(problem, width, control, seed, number, arguments.output, tuple(arguments.set), variant)
        for problem in arguments.problems
        for variant in arguments.variants
        for width in arguments.widths
        for seed in arguments.seeds
        for control, number in zip(arguments.controls, updates, strict=True)
    ]
    with ThreadPoolExecutor(arguments.parallel) as pool:
        for run, _ in zip(runs, pool.map(Run.train, runs), strict=True):
            print(f"trained {run.folder}", flush=True)
    series = read_metrics(runs[0].folder / METRICS_FILE)
    heads = [
        "dataset",
        "variant",
        "width",
        "control",
        "seed",
        "updates",
        *entropy_names(series),
        "slope",
        "roughness",
        "Q",
    ]
    heads.append("evaluation return")
    measured = {run: measure(run) for run in runs}
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += [table_row(run, figures) for run, figures in measured.items()]
    if len(arguments.seeds) > 1:
        summary = over_seeds(measured)
        lines += ["", *summary_lines(summary)]
        for problem in arguments.problems:
            draw_summary(problem, summary, arguments.output / f"collapse_{problem}_over_seeds.png")
    write_text_whole(arguments.output / "collapse.md", "\n".join(lines) + "\n")
    for problem in arguments.problems:
        for variant in arguments.variants:
            own = [run for run in runs if (run.problem, run.variant) == (problem, variant)]
            name = problem if variant == "dense" else f"{problem}_{variant}"
            draw(name, own, arguments.output / f"collapse_{name}.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
