"""The numbers of the opponents' released code, reproduced by our algorithms with the recorded noise.

``pytest tests/test_golden_methods.py --golden DIR`` runs the cases of another folder; ``--reached`` prints what was
reached. A case is a folder with a core.npz, at any depth, whose config.json names its method.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import REACHED
from tests.golden_methods import METHODS
from tests.golden_methods.bases import largest
from tests.golden_methods.running import MethodCase, read, run_method_case

# Largest difference over the largest entry of each array, for what update 0 computes and for later updates,
# whose parameters already carry the rounding of earlier Adam steps.
UPDATE_0 = 1e-5
LATER = 1e-4
# Of parameters, absolute, for learning rates up to and above 1e-3.
PARAMETERS, FAST = 1e-6, 5e-6
# A gradient below this share of its array's largest is rounding. Adam divides it by itself, so that its step of up to
# the learning rate has neither size nor sign in common. So few entries may use that: two, or one in 100.
ROUNDING = 1e-6
FEW, FEW_IN = 2, 100


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest, method_case: Path, tmp_path_factory: pytest.TempPathFactory) -> MethodCase:
    settings = json.loads((method_case / "config.json").read_text())
    name = settings.get("algorithm", settings.get("system"))
    method = METHODS[name](settings["config"], settings["obs_dim"], settings["action_dim"])
    reached = request.config.stash[REACHED].setdefault(f"{name}/{method_case.name}", {})
    return run_method_case(method_case, method, tmp_path_factory.mktemp("golden"), reached)


def without_parts(arrays: dict[str, Any]) -> dict[str, Any]:
    """Only what a case computed itself."""
    return {name: array for name, array in arrays.items() if not name.startswith(("batch/", "draw/", "info/"))}


def test_every_intermediate_of_update_0_equals_the_release(case: MethodCase) -> None:
    batch, noise = case.recorded(0)
    model = case.after(0)
    with torch.no_grad():
        ours = case.method.forward(model, batch, noise, model.inputs(0))
    release = without_parts(case.of_update(0))
    assert ours.keys() == release.keys() - {case.method.total, "grad_global_norm"}
    for name, array in ours.items():
        case.compare("update 0, forward", name, array, release[name], UPDATE_0)


def test_losses_and_metrics_of_every_update_equal_the_release(case: MethodCase) -> None:
    metrics, constants = case.method.metrics, case.method.constants
    for update in case.updates:
        kind, tolerance = ("update 0, losses", UPDATE_0) if update == 0 else ("later updates", LATER)
        arrays = {name: array.numpy() for name, array in case.of_update(update).items()}
        scales = case.method.scales(arrays)
        logged = {name.removeprefix("info/"): array for name, array in arrays.items() if name.startswith("info/")}
        for name, release in logged.items():
            if not name.startswith(("grad/", "lr")):
                ours = case.record.metrics[update][metrics[name]] if name in metrics else constants[name]
                case.compare(kind, f"update {update} {name}", ours, release, tolerance, scales.get(name, 0.0))
        parts = [largest(release) for name, release in logged.items() if name.endswith("_loss")]
        total, scale = case.record.totals[update], max([*parts, *scales.values()])
        case.compare(kind, f"update {update} total loss", total, arrays[case.method.total], tolerance, scale)


def test_every_metric_is_logged_by_the_release(case: MethodCase) -> None:
    """So that no name is lost, in whichever update it is logged."""
    logged = {name.partition("/info/")[2] for name in case.core if "/info/" in name}
    assert case.method.metrics.keys() <= logged


def test_every_recorded_gradient_equals_the_release(case: MethodCase) -> None:
    files = sorted(case.folder.glob("grads_*.npz"))
    assert files
    for file in files:
        update = int(file.stem.removeprefix("grads_"))
        kind, tolerance = ("update 0, gradients", UPDATE_0) if update == 0 else ("later updates", LATER)
        release, ours = case.used(read(file)), case.record.gradients[update]
        assert ours.keys() == {name for name in release if not name.startswith("target_")}
        steepest = max(largest(array) for array in release.values())
        for name in sorted(name for name in ours if not name.endswith(case.method.no_gradient)):
            case.compare(
                kind, f"{name} of update {update}", ours[name], release[name], tolerance, floor=1e-8 * steepest
            )
        summaries = {
            "norm_l1_all": sum(np.abs(gradient, dtype=np.float64).sum() for gradient in ours.values()),
            "norm": sum(np.linalg.norm(gradient) for gradient in ours.values()),
            "max": max(0.0, *(gradient.max() for gradient in ours.values())),
            "min": min(0.0, *(gradient.min() for gradient in ours.values())),
        }
        recorded = {name: f"u{update}/info/grad/{name}" for name in summaries}
        summaries["global_norm"] = np.sqrt(sum(np.square(gradient).sum() for gradient in ours.values()))
        recorded["global_norm"] = f"u{update}/grad_global_norm"
        found = [name for name, array in recorded.items() if array in case.core]
        assert {"norm", "max", "min"} <= set(found)
        for name in found:
            case.compare(kind, name, summaries[name], case.core[recorded[name]], tolerance)


def moved_by_rounding(case: MethodCase, num_updates: int) -> dict[str, np.ndarray]:
    """Which entries' gradients Adam divides by nothing but rounding in one of the first updates, by trained array."""
    moved: dict[str, np.ndarray] = {}
    for name, first in case.record.gradients[0].items():
        moved[name], square = np.zeros(first.shape, dtype=bool), np.zeros(first.shape)
        for update in range(num_updates):
            gradient = np.abs(case.record.gradients[update][name].astype(np.float64))
            square = 0.999 * square + 0.001 * gradient**2
            divisor = np.sqrt(square / (1.0 - 0.999 ** (update + 1)))
            moved[name] |= (divisor < ROUNDING * largest(gradient)) & (largest(gradient) > 0.0)
    return moved


def test_all_recorded_parameters_equal_the_release(case: MethodCase) -> None:
    files = sorted(file for file in case.folder.glob("params_[0-9]*.npz") if file.stem != "params_0")
    assert files
    learning_rate = case.model.optimisation.learning_rate
    tight = FAST if learning_rate > 1e-3 else PARAMETERS
    for file in files:
        after = int(file.stem.removeprefix("params_"))
        release, ours = case.used(read(file)), case.record.parameters[after - 1]
        assert ours.keys() == release.keys()
        moved = moved_by_rounding(case, after)
        beyond = size = 0
        for name in sorted(name for name in release if not name.endswith(case.method.no_gradient)):
            mask = moved[name.removeprefix("target_")]
            difference = np.abs(ours[name].astype(np.float64) - release[name])
            size += mask.size
            beyond += int((difference[mask] > tight).sum())
            kind = f"parameters after {after}, absolute"
            allowed = np.where(mask, 2.0 * learning_rate * after, tight)
            worst = float(difference[~mask].max(initial=0.0))
            case.reached[kind] = max(case.reached.get(kind, 0.0), worst)
            assert (difference <= allowed).all(), f"{name} after {after}: differs by {difference.max():.3g}"
        assert beyond <= max(FEW, size // FEW_IN), f"{beyond} of {size} entries differ by a step of Adam on rounding"


def test_acting_equals_the_release(case: MethodCase) -> None:
    arrays = {name.removeprefix("act/"): array for name, array in case.core.items() if name.startswith("act/")}
    with torch.no_grad():
        model = case.after(case.method.acting_after)
        ours = case.method.acting(model, {name: torch.from_numpy(array) for name, array in arrays.items()})
    assert ours.keys() == arrays.keys() - {"observations", "noise"}
    for name, array in ours.items():
        case.compare("acting", name, array, arrays[name], UPDATE_0)


def test_learning_rates_equal_the_release(case: MethodCase) -> None:
    optimisation = case.model.optimisation
    release = case.core["lr"] if "lr" in case.core else [case.method.config["lr"]]
    ours = [optimisation.learning_rate * optimisation.factor(update) for update in range(len(release))]
    np.testing.assert_allclose(ours, release, rtol=1e-5)
    expected = release if len(release) > 1 else list(release) * len(case.updates)
    np.testing.assert_allclose(case.record.learning_rates, expected[: len(case.updates)], rtol=1e-5)


def test_the_initial_weights_have_the_releases_shapes_spreads_and_bounds(case: MethodCase) -> None:
    release = case.used(json.loads((case.folder / "init_stats.json").read_text()))
    draws: dict[str, list[np.ndarray]] = {}
    for seed in range(20):
        torch.manual_seed(seed)
        model = case.method.build()
        for entry in case.method.named(model):
            values = [parameter.detach() for parameter in entry.parameters]
            draws.setdefault(entry.name, []).append(entry.to_release(values).numpy())
    assert draws.keys() == release.keys()
    for name, arrays in draws.items():
        ours, theirs = np.stack(arrays), release[name]
        assert list(arrays[0].shape) == theirs["shape"], name
        size, deviation = arrays[0].size, float(ours.std())
        # The release's is one draw: four standard errors of its mean and of its standard deviation.
        assert abs(theirs["mean"] - ours.mean()) <= 4.0 * deviation / np.sqrt(size) + 1e-6, name
        assert abs(theirs["std"] - deviation) <= 4.0 * deviation / np.sqrt(2.0 * size) + 1e-6, name
        # Truncated and uniform draws end about two deviations out, constants have none, plain normal draws no end.
        bound = 5.0 * deviation if 2.5 < largest(ours) / max(deviation, 1e-6) < 10.0 else 1.02 * largest(ours)
        assert max(-theirs["min"], theirs["max"]) <= bound + 1e-6, name
