"""The release's own numbers, reproduced by the real `TQL` under a real Trainer with the recorded noise.

``pytest tests/test_golden.py --golden DIR`` runs the cases of another folder; ``--reached`` prints what was reached.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import REACHED
from tests.golden_case import Arrays, Case, build, read, run_case
from tql_lightning.algorithms import losses
from tql_lightning.export.release import TEMPERATURE, load_release_params, release_arrays
from tql_lightning.nn.attention_weights import attention_log_weights

# Largest difference over the largest entry of each array, for what update 0 computes and for later updates,
# whose parameters already carry the rounding of earlier Adam steps.
UPDATE_0 = 1e-5
LATER = 1e-4
# Of parameters, absolute: the golden README's bounds, the wider one for a critic that learns faster than 1e-3.
PARAMETERS, FAST_CRITIC = 1e-6, 5e-6
# A gradient below this share of its array's largest is rounding. Adam divides it by itself, so that its step of up to
# the learning rate has neither size nor sign in common. So few entries may use that: two, or one in 100,000.
ROUNDING = 1e-6
FEW, FEW_IN = 2, 100_000

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


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest, golden_case: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    reached = request.config.stash[REACHED].setdefault(golden_case.name, {})
    return run_case(golden_case, tmp_path_factory.mktemp("golden"), reached)


def largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))


def without_temperature(case: Case, arrays: Arrays) -> Arrays:
    """The release has a temperature also where nothing uses it; ours has not."""
    if case.model.temperature is not None:
        return arrays
    return {name: array for name, array in arrays.items() if not name.startswith(TEMPERATURE)}


def test_all_recorded_updates_ran(case: Case) -> None:
    assert len(case.record.outputs) == len(case.record.gradients) == len(case.record.parameters) >= 5


def test_initial_forward_equals_the_release(case: Case) -> None:
    fresh = build(case.config, case.model.observation_dim, case.model.action_dim)
    load_release_params(fresh, case.folder / "params_0.npz", ignore_temperature=True)
    batch, noise = case.batch(0), case.noise(0)
    x_t = torch.from_numpy(case.core["u0/bc_x_t"])
    with torch.no_grad():
        values, entropy, _ = fresh.critic(batch.observations, batch.actions, with_entropy=True)
        tokens = fresh.critic.tokenizer(batch.observations, batch.actions)
        _, per_query = fresh.critic.transformer(tokens, with_entropy=True)
        without_entropy = fresh.critic(batch.observations, batch.actions).values
        next_actions = fresh.one_step_actions(batch.next_observations, noise.next_action)
        next_values = fresh.target_critic(batch.next_observations, next_actions).values
        student = fresh.policy.one_step_actions(batch.observations, noise.distillation)
        ours = {
            "q": values,
            "entropy": entropy,
            "entropy_per_query": per_query.mean(dim=(1, 2)),
            "next_actions": next_actions,
            "next_q_ensemble": next_values,
            "next_q": aggregated(next_values, case.config["q_agg"]),
            "target_q": losses.td_target(
                batch.rewards, batch.masks, next_values, fresh.discount, fresh.target_aggregation
            ),
            "bc_x_t": losses.flow_interpolation(noise.flow_x0, batch.actions, noise.flow_t),
            "bc_pred": fresh.policy.velocity(batch.observations, x_t, noise.flow_t),
            "flow_actions": fresh.policy.flow_actions(batch.observations, noise.distillation),
            "onestep_actions": student,
            "actor_q_ensemble": fresh.frozen_critic_values(batch.observations, student.clamp(-1.0, 1.0)),
        }
        if fresh.temperature is not None:
            ours["temperature"] = fresh.temperature()
        log_weights = attention_log_weights(fresh.critic, batch.observations, batch.actions)
    for name, array in ours.items():
        case.compare("update 0, forward", name, array, case.core[f"u0/{name}"], UPDATE_0)
    case.compare("update 0, forward", "q without entropy", without_entropy, case.core["u0/q"], UPDATE_0)
    release = case.core["u0/attention_weights_first4"]
    assert len(log_weights) == len(release)
    for layer, found in enumerate(log_weights):
        name = f"attention weights of layer {layer}"
        case.compare("update 0, forward", name, found.exp()[: release.shape[1]], release[layer], UPDATE_0)


def aggregated(next_values: Tensor, aggregation: str) -> Tensor:
    return next_values.mean(dim=-1) if aggregation == "mean" else next_values.amin(dim=-1)


def scales(case: Case, update: int) -> dict[str, float]:
    """The largest number that a metric is a sum or mean of, where that can be larger than the metric itself."""
    core = {name.removeprefix(f"u{update}/"): array for name, array in case.core.items()}
    temperature, entropy = core["temperature"], core["entropy"]
    weight = temperature.clip(
        case.config["attention_entropy_temperature_min"], case.config["attention_entropy_temperature_max"]
    )
    policy_q = core["actor_q_ensemble"]
    normaliser = np.abs(policy_q.mean(axis=-1)).mean() if case.config["normalize_q_loss"] else 1.0
    found = dict.fromkeys(("critic/q_mean", "critic/q_min", "critic/q_max"), largest(core["q"]))
    found["critic/target_q_mean"] = largest(core["next_q_ensemble"])
    found["actor/q"] = largest(policy_q)
    found["actor/q_loss"] = largest(policy_q) / normaliser
    if case.model.temperature is not None:
        found["critic/attention_entropy_loss"] = largest(weight * entropy)
        found["critic/temperature_loss"] = largest(temperature * entropy)
    parts = [found.get(f"critic/{name}", 0.0) for name in ("attention_entropy_loss", "temperature_loss")]
    found["critic/critic_loss"] = max(largest(core["info/critic/q_loss"]), *parts)
    cloning = largest(core["info/actor/bc_flow_loss"])
    distillation = case.config["alpha"] * largest(core["info/actor/distill_loss"])
    found["actor/actor_loss"] = max(cloning, distillation, found["actor/q_loss"])
    return found


def test_losses_and_metrics_of_every_update_equal_the_release(case: Case) -> None:
    for update in case.updates:
        metrics = case.record.outputs[update]["metrics"]
        tolerance, kind = (UPDATE_0, "update 0, losses") if update == 0 else (LATER, "later updates")
        scale = scales(case, update)
        for theirs, ours in METRICS.items():
            release = case.core[f"u{update}/info/{theirs}"]
            name = f"update {update} {theirs}"
            case.compare(kind, name, metrics[ours], release, tolerance, scale.get(theirs))
    total = case.record.outputs[0]["loss"]
    scale = scales(case, 0)
    largest_part = max(scale["critic/critic_loss"], scale["actor/actor_loss"])
    case.compare("update 0, losses", "total loss", total, case.core["u0/total_loss"], UPDATE_0, largest_part)


def test_every_number_that_the_release_logs_is_compared(case: Case) -> None:
    logged = {name.removeprefix("u0/info/") for name in case.core if name.startswith("u0/info/")}
    elsewhere = ("grad/", "critic/attention_entropy_mean_layer_", "critic/attention_entropy_coef_layer_")
    assert {name for name in logged if not name.startswith(elsewhere)} == METRICS.keys()


def test_attention_entropies_and_temperatures_of_every_update_equal_the_release(case: Case) -> None:
    for update in case.updates:
        tolerance, kind = (UPDATE_0, "update 0, losses") if update == 0 else (LATER, "later updates")
        entropy = case.record.outputs[update]["diagnostics"]["attention_entropy"]
        case.compare(kind, f"update {update} entropy", entropy, case.core[f"u{update}/entropy"], tolerance)
        for layer, row in enumerate(entropy):
            for group, ours in zip(("cls", "other"), row, strict=True):
                name = f"u{update}/info/critic/attention_entropy_mean_layer_{layer}_{group}"
                if name in case.core:
                    case.compare(kind, name, ours, case.core[name], tolerance)
    if case.model.temperature is None:
        assert all("temperature" not in outputs["diagnostics"] for outputs in case.record.outputs)
        return
    for update in case.updates:
        ours = case.record.outputs[update]["diagnostics"]["temperature"]
        case.compare("later updates", f"update {update} T", ours, case.core[f"u{update}/temperature"], LATER)


def test_every_gradient_of_update_0_equals_the_release(case: Case) -> None:
    release = without_temperature(case, read(case.folder / "grads_0.npz"))
    ours = case.record.gradients[0]
    assert ours.keys() == {name for name in release if not name.startswith("target_critic/")}
    steepest = max(largest(release[name]) for name in ours)
    for name in sorted(ours):
        if not name.endswith("key/bias"):  # its true gradient is zero; what is stored is rounding
            case.compare("update 0, gradients", name, ours[name], release[name], UPDATE_0, floor=1e-8 * steepest)
    summaries = {
        "norm_l1_all": sum(np.abs(gradient, dtype=np.float64).sum() for gradient in ours.values()),
        "norm": sum(np.linalg.norm(gradient) for gradient in ours.values()),
        "max": max(gradient.max() for gradient in ours.values()),
        "min": min(gradient.min() for gradient in ours.values()),
    }
    for name, summary in summaries.items():
        if f"u0/info/grad/{name}" in case.core:
            case.compare("update 0, gradients", name, summary, case.core[f"u0/info/grad/{name}"], UPDATE_0)


def test_learning_rates_equal_the_release(case: Case) -> None:
    for update, rates in enumerate(case.record.learning_rates):
        for group in ("critic", "actor"):
            release = case.core[f"lr/{group}"][update]
            assert rates[group] == pytest.approx(release, rel=1e-5), f"{group} at update {update}"
            assert rates.get(f"{group}_no_decay", rates[group]) == rates[group]
        assert rates.get("temperature", rates["critic"]) == rates["critic"]
    for group, peak in (
        ("critic", case.model.optimisation.peak("critic")),
        ("actor", case.model.optimisation.peak("actor")),
    ):
        ours = [peak * case.model.optimisation.factor(u) for u in range(len(case.core[f"lr/{group}"]))]
        np.testing.assert_allclose(ours, case.core[f"lr/{group}"], rtol=1e-5)


def moved_by_rounding(case: Case, num_updates: int) -> dict[str, np.ndarray]:
    """Which entries' gradients Adam divides by nothing but rounding in one of the first updates, by trained array.

    Update 0 goes by the smaller of the release's gradient and ours, later ones, which the release's files do not
    hold, by ours. Entries without any gradient are not moved at all and so not among them.
    """
    release = read(case.folder / "grads_0.npz")
    moved: dict[str, np.ndarray] = {}
    for name, first in case.record.gradients[0].items():
        moved[name], square = np.zeros(first.shape, dtype=bool), np.zeros(first.shape)
        for update in range(num_updates):
            gradient = np.abs(case.record.gradients[update][name].astype(np.float64))
            smaller = np.minimum(gradient, np.abs(release[name])) if update == 0 else gradient
            square = 0.999 * square + 0.001 * smaller**2
            divisor = np.sqrt(square / (1.0 - 0.999 ** (update + 1)))
            some = (gradient > 0.0) | (divisor > 0.0) | ((update == 0) & (release[name] != 0.0))
            moved[name] |= some & (divisor < ROUNDING * largest(gradient))
    return moved


@pytest.mark.parametrize("after", [1, 5])
def test_all_parameters_after_updates_equal_the_release(case: Case, after: int) -> None:
    release = without_temperature(case, read(case.folder / f"params_{after}.npz"))
    ours = case.record.parameters[after - 1]
    assert ours.keys() == release.keys()
    online, target = moved_by_rounding(case, after), moved_by_rounding(case, after - 1)
    beyond = 0
    for name in sorted(release):
        if name.endswith("key/bias"):
            continue
        group = "actor" if name.startswith("actor_") else "critic"
        tight = FAST_CRITIC if group == "critic" and case.model.optimisation.peak("critic") > 1e-3 else PARAMETERS
        # The target follows the critic as it was an update before.
        is_target = name.startswith("target_critic/")
        mask = target[name.removeprefix("target_")] if is_target else online[name]
        steps = 2.0 * float(case.core[f"lr/{group}"][: after - is_target].sum())
        difference = np.abs(ours[name].astype(np.float64) - release[name])
        beyond += int((difference[mask] > tight).sum())
        kind = f"parameters after {after}, absolute"
        case.compare(kind, f"{name} after {after}", ours[name][~mask], release[name][~mask], tight, absolute=True)
        case.compare(
            f"{kind}, moved by rounding",
            f"{name} after {after}, entries that rounding moves",
            ours[name][mask],
            release[name][mask],
            tight + steps,
            absolute=True,
        )
    size = sum(array.size for array in release.values())
    assert beyond <= max(FEW, size // FEW_IN), f"{beyond} of {size} entries differ by a step of Adam on rounding"


def test_the_initial_weights_have_the_releases_shapes_spreads_and_bounds(case: Case) -> None:
    file = case.folder / "init_stats.json"
    if not file.is_file():
        pytest.skip("this case has no init_stats.json")
    release = json.loads(file.read_text())
    draws: dict[str, list[np.ndarray]] = {}
    for seed in range(20):
        torch.manual_seed(seed)
        for name, array in release_arrays(
            build(case.config, case.model.observation_dim, case.model.action_dim)
        ).items():
            draws.setdefault(name, []).append(array)
    assert draws.keys() == without_temperature(case, release).keys()
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
