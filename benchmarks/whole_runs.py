"""Whole training runs on the inputs of the authors' release, beside the release's own curves.

``python -m benchmarks.whole_runs --runs DIR --data Pendulum-v1.npz --output FOLDER`` trains on the recorded inputs and
writes our curves, a figure over the release's band and a table of means and permutation p values. DIR holds
``inputs_S.npz`` (initial parameters, rows of every batch, every draw) and ``curves.npz`` (the release's numbers at
every update, ``seed_S/ARM/METRIC``). The arms of a seed differ by rounding alone: they show how far rounding carries.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray

from tql_lightning.algorithms.tql import TQL, TQLNoise
from tql_lightning.batch import Batch
from tql_lightning.data.sources.npz import load_npz
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.export.release import load_release_params
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.training.optimisation import Optimisation

Curves = dict[str, NDArray[np.float64]]

UPDATES = 1250
ARMS = ("release", "release_last_bit", "release_permuted")
INDEPENDENT = "actor/bc_flow_loss"  # of the critic, and so free of its chaos
DRAWS = ("next_action_noise", "flow_x0", "flow_t", "distill_noise", "metric_noise")  # fields of TQLNoise, in order
METRICS = {
    "critic/critic_loss": "critic_loss",
    "critic/q_loss": "td_loss",
    "critic/attention_entropy_loss": "entropy_loss",
    "critic/temperature_loss": "temperature_loss",
    "critic/q_mean": "q_mean",
    "critic/q_min": "q_min",
    "critic/q_max": "q_max",
    "critic/target_q_mean": "target_q_mean",
    "actor/actor_loss": "actor_loss",
    "actor/bc_flow_loss": "behaviour_flow_loss",
    "actor/distill_loss": "distillation_loss",
    "actor/q_loss": "q_loss",
    "actor/q": "policy_q_mean",
    "actor/mse": "action_error",
}
TABLES = {"attention_entropy_mean": "attention_entropy", "attention_entropy_coef": "temperature"}
SHOWN = {
    "critic/q_loss": "TD loss",
    "critic/q_mean": "mean Q(s, a)",
    "actor/q": "mean Q of the policy",
    "actor/distill_loss": "distillation loss",
    "critic/attention_entropy_mean_layer_1_cls": "entropy, last layer, [VALUE] (nats)",
    INDEPENDENT: "behaviour-flow loss",
}


class Recorded:
    """The recorded batches and draws as a trainer's data, one update a step."""

    def __init__(self, inputs: Path, dataset: TransitionDataset, updates: int) -> None:
        with np.load(inputs, allow_pickle=False) as file:
            self.rows = file["rows"].astype(np.int64)
            self.draws = [file[f"draw/{name}"] for name in DRAWS]
        self.dataset, self.updates = dataset, updates

    def __iter__(self) -> Iterator[tuple[Batch, TQLNoise]]:
        for update in range(self.updates):
            rows = self.rows[update]
            fields = (np.asarray(getattr(self.dataset, name))[rows] for name in Batch._fields)
            yield (
                Batch(*(torch.from_numpy(field)[None] for field in fields)),
                TQLNoise(*(torch.from_numpy(draw[update])[None] for draw in self.draws)),
            )


class Curve(Callback):
    """Keeps the numbers of every update by the release's names; observes only."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, _: Trainer, __: Any, outputs: Any, *___: Any) -> None:  # type: ignore[override]
        """Keeps an update's numbers."""
        row = {name: float(outputs["metrics"][ours]) for name, ours in METRICS.items()}
        for name, ours in TABLES.items():
            for layer, pair in enumerate(outputs["diagnostics"][ours].tolist()):
                for group, value in zip(("cls", "other"), pair, strict=True):
                    row[f"critic/{name}_layer_{layer}_{group}"] = value
        self.rows.append(row)


def quickstart_model(observation_dim: int, action_dim: int) -> TQL:
    """The model of the recorded runs: the quickstart's, with the settings of whole_runs.yaml."""
    return TQL(
        observation_dim,
        action_dim,
        critic=partial(TransformerCritic, hidden_dim=64),
        policy=partial(FlowPolicy, hidden_dims=(128, 128, 128), flow_steps=5),
        discount=0.97,
        tau=0.05,
        bc_coefficient=0.01,
        normalize_q_loss=True,
        optimisation=Optimisation(
            learning_rate=2e-3,
            weight_decay=0.01,
            lr_schedule="warmup_cosine",
            warmup_updates=50,
            schedule_updates=UPDATES,
        ),
    )


def replay(inputs: Path, dataset: TransitionDataset, updates: int = UPDATES) -> Curves:
    """Trains on recorded inputs by a real Trainer.

    Args:
        inputs: ``inputs_S.npz``.
        dataset: Dataset that its rows point into.
        updates: Updates to run; the schedule of learning rates stays the whole run's.

    Returns:
        The release's name of a metric to its value at every update, (updates,).
    """
    model = quickstart_model(dataset.observations.shape[1], dataset.actions.shape[1])
    with np.load(inputs, allow_pickle=False) as file:
        names = [name for name in file.files if name.startswith("params_0/")]
        load_release_params(model, {name.removeprefix("params_0/"): file[name] for name in names})
    curve = Curve()
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=updates,
            log_every_n_steps=1,
            limit_val_batches=0,
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[curve],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(model, train_dataloaders=Recorded(inputs, dataset, updates))
    return {name: np.array([row[name] for row in curve.rows]) for name in curve.rows[0]}


def recorded_seeds(folder: Path) -> list[int]:
    """Seeds whose inputs a folder holds."""
    return sorted(int(path.stem.removeprefix("inputs_")) for path in folder.glob("inputs_*.npz"))


def release_curves(folder: Path) -> dict[int, list[Curves]]:
    """Seed to the curves of its arms."""
    with np.load(folder / "curves.npz", allow_pickle=False) as file:
        arrays = {name: file[name].astype(np.float64) for name in file.files}
    seeds = sorted({int(name.split("/")[0].removeprefix("seed_")) for name in arrays})

    def arm(seed: int, name: str) -> Curves:
        prefix = f"seed_{seed}/{name}/"
        return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}

    return {seed: [arm(seed, name) for name in ARMS] for seed in seeds}


def window_means(curve: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Means over consecutive windows of updates; the last window may be shorter."""
    return np.array([curve[first : first + window].mean() for first in range(0, len(curve), window)])


def excess(ours: Curves, seed: int, release: dict[int, list[Curves]], name: str, window: int) -> NDArray[np.float64]:
    """How far a curve leaves the band of its seed's arms, in units of the widest band of any seed; (windows,)."""
    bands = {number: np.stack([window_means(arm[name], window) for arm in arms]) for number, arms in release.items()}
    widest = np.max([np.ptp(band, axis=0) for band in bands.values()], axis=0)
    own, mean = bands[seed], window_means(ours[name], window)
    outside = np.maximum(np.maximum(own.min(axis=0) - mean, mean - own.max(axis=0)), 0.0)
    return np.asarray(outside / np.maximum(widest, 1e-5 * np.abs(own).max()))


def arms_excess(release: dict[int, list[Curves]], name: str, window: int) -> float:
    """The largest `excess` of an arm, each beside the other arms: what rounding alone does."""
    largest = 0.0
    for seed, arms in release.items():
        for k, arm in enumerate(arms):
            others = release | {seed: arms[:k] + arms[k + 1 :]}
            largest = max(largest, float(excess(arm, seed, others, name, window).max()))
    return largest


def permutation_p(ours: dict[int, float], release: dict[int, list[float]]) -> float:
    """Two-sided p value of ours being one more arm: every choice of one run of each seed as "ours" is as likely."""
    runs = [np.array([ours[seed], *release[seed]]) for seed in ours]

    def distance(choice: tuple[int, ...]) -> float:
        return abs(
            sum(float(run[k] - np.delete(run, k).mean()) for run, k in zip(runs, choice, strict=True)) / len(runs)
        )

    all_choices = [distance(choice) for choice in product(*(range(len(run)) for run in runs))]
    observed = distance((0,) * len(runs))
    return float(np.mean([each >= observed * (1.0 - 1e-12) for each in all_choices]))


def table(ours: dict[int, Curves], release: dict[int, list[Curves]]) -> str:
    """Means over the last half of the run, ours and the release's, with the p value; markdown."""
    lines = ["| number, mean over the second half | ours | release, same seeds | all seeds and arms | p |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name in sorted(next(iter(ours.values())).keys() - {INDEPENDENT}):
        own = {seed: float(curves[name][UPDATES // 2 :].mean()) for seed, curves in ours.items()}
        theirs = {seed: [float(arm[name][UPDATES // 2 :].mean()) for arm in arms] for seed, arms in release.items()}
        same = np.mean([theirs[seed] for seed in own])
        every = np.concatenate([theirs[seed] for seed in theirs])
        p = permutation_p(own, theirs)
        numbers = f"{np.mean(list(own.values())):.4g} | {same:.4g} | {every.min():.4g} to {every.max():.4g} | {p:.2f}"
        lines.append(f"| `{name}` | {numbers} |")
    return "\n".join(lines) + "\n"


def draw(ours: dict[int, Curves], release: dict[int, list[Curves]], path: Path, window: int = 25) -> None:
    """Our curves over the release's: the band of all seeds and arms, and its mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(11, 5.5), layout="constrained")
    updates = np.minimum(np.arange(0, UPDATES, window) + window / 2, UPDATES)
    for axis, (name, title) in zip(axes.flat, SHOWN.items(), strict=True):
        arms = np.stack([window_means(arm[name], window) for each in release.values() for arm in each])
        axis.fill_between(updates, arms.min(axis=0), arms.max(axis=0), color="0.85", label="release, all runs")
        axis.plot(updates, arms.mean(axis=0), color="0.5", linewidth=1, label="release, mean")
        for seed, curves in ours.items():
            axis.plot(updates, window_means(curves[name], window), linewidth=1.2, label=f"ours, seed {seed}")
        axis.set_title(title, fontsize=9)
        if name in ("critic/q_loss", "actor/distill_loss"):
            axis.set_yscale("log")
    axes[1, 1].set_xlabel("updates")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Runs every recorded seed; curves that the output folder already holds are taken from there."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=Path, required=True, help="folder of inputs_S.npz and curves.npz")
    arguments.add_argument("--data", required=True, help="the quickstart's dataset (.npz)")
    arguments.add_argument("--output", type=Path, required=True, help="folder for curves, figure and table")
    arguments.add_argument("--seeds", type=int, nargs="*", help="default: all that the folder holds")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    dataset, ours = load_npz(options.data), {}
    for seed in options.seeds or recorded_seeds(options.runs):
        kept = options.output / f"ours_{seed}.npz"
        if not kept.is_file():
            curves: Any = replay(options.runs / f"inputs_{seed}.npz", dataset)
            np.savez_compressed(kept, allow_pickle=False, **curves)
        with np.load(kept, allow_pickle=False) as file:
            ours[seed] = {name: file[name] for name in file.files}
    release = release_curves(options.runs)
    draw(ours, release, options.output / "whole_runs.png")
    (options.output / "whole_runs.md").write_text(table(ours, release))
    print(table(ours, release))


if __name__ == "__main__":
    main()
