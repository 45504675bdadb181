"""The release's own numbers, reproduced by the real `TQL` under a real Trainer with the recorded noise.

The same updates in float64 are the judge: ours may be at most three times as far from them as the release's float32 is,
or within 1e-6, and the release no farther than rounding explains.

``pytest tests/test_golden.py --golden DIR`` runs the cases of another folder; ``--reached`` prints what was reached.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import REACHED
from tests.golden_case import FARTHER, Arrays, Case, Judged, build, read, run_case
from tql_lightning.algorithms import losses
from tql_lightning.algorithms.critics import frozen_values
from tql_lightning.export.release import TEMPERATURE, load_release_params, release_arrays
from tql_lightning.nn.attention_weights import attention_log_weights

LATER = 1e-4  # share of the largest entry, of updates whose parameters carry the rounding of earlier Adam steps
RELEASE_PARAMETERS = 5e-6  # absolute difference of the release's parameters from float64
PARAMETERS = 1e-6  # absolute difference of a parameter from float64 that is always allowed
FLOAT32_SCHEDULE = 3e-7  # of the peak: rounding of the release's schedule, which starts at 0.01 of it
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


SUMMARIES: dict[str, Callable[[Iterable[np.ndarray]], float]] = {
    "norm_l1_all": lambda gradients: sum(np.abs(each, dtype=np.float64).sum() for each in gradients),
    "norm": lambda gradients: sum(float(np.linalg.norm(each)) for each in gradients),
    "max": lambda gradients: max(each.max() for each in gradients),
    "min": lambda gradients: min(each.min() for each in gradients),
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


def forward(case: Case, dtype: torch.dtype) -> Arrays:
    """What update 0 computes before any gradient, in a number type, by the release's names."""
    fresh = build(case.config, case.model.observation_dim, case.model.action_dim)
    load_release_params(fresh, case.folder / "params_0.npz", ignore_temperature=True)
    fresh = fresh.to(dtype)
    batch, noise = case.batch(0, dtype), case.noise(0, dtype)
    with torch.no_grad():
        values, entropy, _ = fresh.critic(batch.observations, batch.actions, with_entropy=True)
        tokens = fresh.critic.tokenizer(batch.observations, batch.actions)
        _, per_query = fresh.critic.transformer(tokens, with_entropy=True)
        next_actions = fresh.one_step_actions(batch.next_observations, noise.next_action)
        next_values = fresh.target_critic(batch.next_observations, next_actions).values
        student = fresh.policy.one_step_actions(batch.observations, noise.distillation)
        x_t = losses.flow_interpolation(noise.flow_x0, batch.actions, noise.flow_t)
        found = {
            "q": values,
            "q without entropy": fresh.critic(batch.observations, batch.actions).values,
            "entropy": entropy,
            "entropy_per_query": per_query.mean(dim=(1, 2)),
            "next_actions": next_actions,
            "next_q_ensemble": next_values,
            "next_q": aggregated(next_values, case.config["q_agg"]),
            "target_q": losses.td_target(
                batch.rewards, batch.masks, next_values, fresh.discount, fresh.target_aggregation
            ),
            "bc_x_t": x_t,
            "bc_pred": fresh.policy.velocity(batch.observations, x_t, noise.flow_t),
            "flow_actions": fresh.policy.flow_actions(batch.observations, noise.distillation),
            "onestep_actions": student,
            "actor_q_ensemble": frozen_values(fresh.critic, batch.observations, student.clamp(-1.0, 1.0)),
        }
        if fresh.temperature is not None:
            found["temperature"] = fresh.temperature()
        rows = case.core["u0/attention_weights_first4"].shape[1]
        for layer, log_weights in enumerate(attention_log_weights(fresh.critic, batch.observations, batch.actions)):
            found[f"attention weights of layer {layer}"] = log_weights.exp()[:rows]
    return {name: tensor.numpy() for name, tensor in found.items()}


def test_initial_forward_equals_the_release(case: Case) -> None:
    ours, judge = forward(case, torch.float32), forward(case, torch.float64)
    release = {name: case.core[f"u0/{name.removesuffix(' without entropy')}"] for name in ours if "layer" not in name}
    weights = case.core["u0/attention_weights_first4"]
    release |= {f"attention weights of layer {layer}": each for layer, each in enumerate(weights)}
    assert ours.keys() == release.keys()
    case.judged("update 0, forward", {name: Judged(ours[name], release[name], judge[name]) for name in ours})


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
    first: dict[str, Judged] = {}
    later: dict[str, Judged] = {}
    for update in case.updates:
        metrics, judge = (record.outputs[update]["metrics"] for record in (case.record, case.judge))
        scale = scales(case, update)
        for theirs, ours in METRICS.items():
            recorded = case.core[f"u{update}/info/{theirs}"]
            each = Judged(metrics[ours], recorded, judge[ours], scale.get(theirs))
            (later if update else first)[f"update {update} {theirs}"] = each
    total, exact = (record.outputs[0]["loss"] for record in (case.record, case.judge))
    scale = scales(case, 0)
    largest_part = max(scale["critic/critic_loss"], scale["actor/actor_loss"])
    first["total loss"] = Judged(total, case.core["u0/total_loss"], exact, largest_part)
    case.judged("update 0, losses", first)
    case.judged("later updates", later, LATER)


def test_every_number_that_the_release_logs_is_compared(case: Case) -> None:
    logged = {name.removeprefix("u0/info/") for name in case.core if name.startswith("u0/info/")}
    elsewhere = ("grad/", "critic/attention_entropy_mean_layer_", "critic/attention_entropy_coef_layer_")
    assert {name for name in logged if not name.startswith(elsewhere)} == METRICS.keys()


def test_attention_entropies_and_temperatures_of_every_update_equal_the_release(case: Case) -> None:
    first: dict[str, Judged] = {}
    later: dict[str, Judged] = {}
    for update in case.updates:
        arrays = later if update else first
        ours, judge = (record.outputs[update]["diagnostics"] for record in (case.record, case.judge))
        entropy, exact = ours["attention_entropy"], judge["attention_entropy"]
        arrays[f"u{update}/entropy"] = Judged(entropy, case.core[f"u{update}/entropy"], exact)
        for layer, row in enumerate(entropy):
            for index, group in enumerate(("cls", "other")):
                name = f"u{update}/info/critic/attention_entropy_mean_layer_{layer}_{group}"
                if name in case.core:
                    arrays[name] = Judged(row[index], case.core[name], exact[layer, index])
        assert ("temperature" in ours) == (case.model.temperature is not None)
        if "temperature" in ours:
            recorded = case.core[f"u{update}/temperature"]
            arrays[f"u{update}/temperature"] = Judged(ours["temperature"], recorded, judge["temperature"])
    case.judged("update 0, losses", first)
    case.judged("later updates", later, LATER)


def test_every_gradient_of_update_0_equals_the_release(case: Case) -> None:
    release = without_temperature(case, read(case.folder / "grads_0.npz"))
    ours, judge = case.record.gradients[0], case.judge.gradients[0]
    assert ours.keys() == {name for name in release if not name.startswith("target_critic/")}
    floor = 1e-8 * max(largest(release[name]) for name in ours)
    arrays = {
        name: Judged(ours[name], release[name], judge[name], floor=floor)
        for name in ours
        if not name.endswith("key/bias")  # its true gradient is zero; what is stored is rounding
    }
    for name, summary in SUMMARIES.items():
        if f"u0/info/grad/{name}" in case.core:
            recorded = case.core[f"u0/info/grad/{name}"]
            arrays[name] = Judged(summary(ours.values()), recorded, summary(judge.values()))
    case.judged("update 0, gradients", arrays)


def test_learning_rates_equal_the_release(case: Case) -> None:
    """The release computes its schedule in float32, which is a few of its last digits from the formula in float64."""
    for update, rates in enumerate(case.record.learning_rates):
        for group in ("critic", "actor"):
            exact = case.model.optimisation.peak(group) * case.model.optimisation.factor(update)
            assert rates[group] == pytest.approx(exact, rel=1e-12), f"{group} at update {update}"
            assert rates.get(f"{group}_no_decay", rates[group]) == rates[group]
        assert rates.get("temperature", rates["critic"]) == rates["critic"]
    for group in ("critic", "actor"):
        peak, recorded = case.model.optimisation.peak(group), case.core[f"lr/{group}"]
        exact = [peak * case.model.optimisation.factor(update) for update in range(len(recorded))]
        np.testing.assert_allclose(recorded, exact, rtol=1e-5, atol=FLOAT32_SCHEDULE * peak)


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


def rounds_gradients(case: Case) -> bool:
    """Whether float32 loses so much of a gradient of update 0 that not even 1e-5 of its largest entry is sure."""
    ours, judge = case.record.gradients[0], case.judge.gradients[0]
    steepest = max(largest(each) for each in judge.values())
    return any(
        largest(ours[name] - judge[name]) > 1e-5 * largest(judge[name]) > 1e-8 * steepest
        for name in ours
        if not name.endswith("key/bias")
    )


@pytest.mark.parametrize("after", [1, 5])
def test_all_parameters_after_updates_equal_the_release(case: Case, after: int) -> None:
    release = without_temperature(case, read(case.folder / f"params_{after}.npz"))
    ours, judge = case.record.parameters[after - 1], case.judge.parameters[after - 1]
    assert ours.keys() == release.keys()
    online, target = moved_by_rounding(case, after), moved_by_rounding(case, after - 1)
    arrays, moved, steps = {}, {}, {}
    for name in sorted(release):
        if name.endswith("key/bias"):
            continue
        group = "actor" if name.startswith("actor_") else "critic"
        # The target follows the critic as it was an update before.
        is_target = name.startswith("target_critic/")
        moved[name] = target[name.removeprefix("target_")] if is_target else online[name]
        steps[name] = 2.0 * float(case.core[f"lr/{group}"][: after - is_target].sum())
        rest = ~moved[name]
        arrays[name] = Judged(ours[name][rest], release[name][rest], judge[name][rest], 1.0, PARAMETERS)
    kind = f"parameters after {after}, absolute"
    # Where rounding is more of a gradient than of a number, Adam makes whole steps of it.
    case.judged(kind, arrays, max(steps.values()) if rounds_gradients(case) else RELEASE_PARAMETERS)
    distances = [float(np.abs(each.release - each.judge).max(initial=0.0)) for each in arrays.values()]
    tight = max(PARAMETERS, FARTHER * max(distances))
    beyond = 0
    for name, mask in moved.items():
        mine, recorded = ours[name][mask], release[name][mask]
        beyond += int((np.abs(mine.astype(np.float64) - recorded) > tight).sum())
        case.compare(f"{kind}, moved by rounding", name, mine, recorded, tight + steps[name], absolute=True)
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
