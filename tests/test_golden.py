"""The release's own numbers, reproduced by the real `TQL` under a real Trainer with the recorded noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tql_lightning.batch import Batch, Noise
from tql_lightning.interop import load_release_params, release_arrays
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.temperature import AttentionTemperature
from tql_lightning.tql import TQL

Arrays = dict[str, np.ndarray]

# Largest difference over the largest entry of each array, for what update 0 computes and for later updates,
# whose parameters already carry the rounding of earlier Adam steps.
UPDATE_0 = 1e-5
LATER = 1e-4
TEMPERATURE = "attention_entropy_temperature/"
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


def read(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def start_of(folder: Path, model: TQL) -> Arrays:
    """Parameters before update 0; the release has a temperature also where nothing uses it, ours has not."""
    arrays = read(folder / "params_0.npz")
    if model.temperature is None:
        arrays = {name: array for name, array in arrays.items() if not name.startswith(TEMPERATURE)}
    return arrays


def build(config: dict[str, Any], observation_dim: int, action_dim: int) -> TQL:
    """Our model for a configuration of the release."""
    entropy_control = None
    if config["use_attention_entropy_loss"]:
        entropy_control = partial(
            AttentionTemperature,
            targets=config["attention_entropy_target"],
            initial=config["attention_entropy_temperature_init"],
            form=config["temp_type"],
            minimum=config["attention_entropy_temperature_min"],
            maximum=config["attention_entropy_temperature_max"],
        )
    return TQL(
        observation_dim,
        action_dim,
        critic=partial(
            TransformerCritic,
            hidden_dim=config["hidden_dim"],
            num_layers=config["num_layers"],
            head_dim=config["hidden_dim"] // config["num_heads"],
            mlp_ratio=config["mlp_ratio"],
            num_critics=config["num_ensembles"],
            modality_embeddings=config["use_modality_embeddings"],
        ),
        policy=partial(
            FlowPolicy,
            hidden_dims=config["actor_hidden_dims"],
            flow_steps=config["flow_steps"],
            layer_norm=config["actor_layer_norm"],
        ),
        entropy_control=entropy_control,
        discount=config["discount"],
        tau=config["tau"],
        target_aggregation=config["q_agg"],
        bc_coefficient=config["alpha"],
        normalize_q_loss=config["normalize_q_loss"],
        critic_learning_rate=config["critic_lr"],
        actor_learning_rate=config["actor_lr"],
        weight_decay=config["adamw_weight_decay"] if config["optimizer"] == "adamw" else 0.0,
        lr_schedule="warmup_cosine" if config["warmup_steps"] else "constant",
        warmup_updates=config["warmup_steps"],
        schedule_updates=config["train_steps"],
        gradient_clip_norm=config["critic_grad_clip"] or None,
    )


class RecordedUpdates:
    """The recorded batches and noise as a trainer's data: one update a step."""

    def __init__(self, case: Case, num_updates: int) -> None:
        self.case, self.num_updates = case, num_updates

    def __iter__(self) -> Iterator[tuple[Batch, Noise]]:
        for update in range(self.num_updates):
            batch, noise = self.case.batch(update), self.case.noise(update)
            yield Batch(*(part[None] for part in batch)), Noise(*(part[None] for part in noise))


@dataclass
class Record(Callback):
    """What a run of the recorded updates did; observes only."""

    outputs: list[dict[str, Any]] = field(default_factory=list)
    learning_rates: list[dict[str, float]] = field(default_factory=list)
    gradients: list[Arrays] = field(default_factory=list)
    parameters: list[Arrays] = field(default_factory=list)

    def on_after_backward(self, trainer: Trainer, pl_module: TQL) -> None:
        groups = trainer.optimizers[0].param_groups
        self.learning_rates.append({group["name"]: group["lr"] for group in groups})
        self.gradients.append(release_arrays(pl_module, lambda parameter: parameter.grad))

    def on_train_batch_end(self, trainer: Trainer, pl_module: TQL, outputs: Any, *_: Any) -> None:
        self.outputs.append(outputs)
        self.parameters.append(release_arrays(pl_module))


@dataclass
class Case:
    """A golden case, the model that starts from it, and what running it recorded."""

    config: dict[str, Any]
    core: Arrays
    folder: Path
    model: TQL
    record: Record

    @property
    def updates(self) -> range:
        return range(len(self.record.outputs))

    def batch(self, update: int) -> Batch:
        return Batch(*(torch.from_numpy(self.core[f"u{update}/batch/{name}"]) for name in Batch._fields))

    def noise(self, update: int) -> Noise:
        names = ("next_action_noise", "flow_x0", "flow_t", "distill_noise", "metric_noise")
        return Noise(*(torch.from_numpy(self.core[f"u{update}/draw/{name}"]) for name in names))


@pytest.fixture(scope="session")
def case(golden_case: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    settings = json.loads((golden_case / "config.json").read_text())
    core = read(golden_case / "core.npz")
    model = build(settings["config"], settings["obs_dim"], settings["action_dim"])
    load_release_params(model, start_of(golden_case, model))
    record = Record()
    case = Case(settings["config"], core, golden_case, model, record)
    num_updates = settings["K"]
    trainer = Trainer(
        max_steps=num_updates,
        limit_val_batches=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[record],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path_factory.mktemp("golden"),
    )
    trainer.fit(model, train_dataloaders=RecordedUpdates(case, num_updates))
    return case


def assert_close(name: str, ours: Any, release: Any, relative: float, absolute: float = 1e-7) -> None:
    """Compares by the largest entry of the release's array, as its tolerances are stated."""
    ours, release = np.asarray(ours, dtype=np.float64), np.asarray(release, dtype=np.float64)
    assert ours.shape == release.shape, f"{name}: shape {ours.shape}, release {release.shape}"
    difference = np.abs(ours - release).max(initial=0.0)
    allowed = max(absolute, relative * np.abs(release).max(initial=0.0))
    assert difference <= allowed, f"{name}: differs by {difference:.3g}, allowed {allowed:.3g}"


def test_all_recorded_updates_ran(case: Case) -> None:
    assert len(case.record.outputs) == len(case.record.gradients) == len(case.record.parameters) >= 5


def test_initial_forward_equals_the_release(case: Case) -> None:
    fresh = build(case.config, case.model.observation_dim, case.model.action_dim)
    load_release_params(fresh, start_of(case.folder, fresh))
    batch = case.batch(0)
    with torch.no_grad():
        values, entropy, _ = fresh.critic(batch.observations, batch.actions, with_entropy=True)
        tokens = fresh.critic.tokenizer(batch.observations, batch.actions)
        _, per_query = fresh.critic.transformer(tokens, with_entropy=True)
        without_entropy = fresh.critic(batch.observations, batch.actions).values
        next_actions = fresh.one_step_actions(batch.next_observations, case.noise(0).next_action)
        next_values = fresh.target_critic(batch.next_observations, next_actions).values
        teacher = fresh.policy.flow_actions(batch.observations, case.noise(0).distillation)
        student = fresh.policy.one_step_actions(batch.observations, case.noise(0).distillation)
    assert_close("q", values, case.core["u0/q"], UPDATE_0)
    assert_close("q without entropy", without_entropy, case.core["u0/q"], UPDATE_0)
    assert_close("entropy", entropy, case.core["u0/entropy"], UPDATE_0)
    assert_close("entropy per query", per_query.mean(dim=(1, 2)), case.core["u0/entropy_per_query"], UPDATE_0)
    assert_close("next actions", next_actions, case.core["u0/next_actions"], UPDATE_0)
    assert_close("next q", next_values, case.core["u0/next_q_ensemble"], UPDATE_0)
    assert_close("flow actions", teacher, case.core["u0/flow_actions"], UPDATE_0)
    assert_close("one-step actions", student, case.core["u0/onestep_actions"], UPDATE_0)


def test_losses_and_metrics_of_every_update_equal_the_release(case: Case) -> None:
    for update in case.updates:
        metrics = case.record.outputs[update]["metrics"]
        for theirs, ours in METRICS.items():
            tolerance = UPDATE_0 if update == 0 else LATER
            release = case.core[f"u{update}/info/{theirs}"]
            # One entry of Q (its extremes) or a difference of entries (its means) is as exact as the largest.
            scale = np.abs(case.core[f"u{update}/q"]).max() if theirs.split("/")[1].startswith("q_") else 0.0
            name = f"update {update} {theirs}"
            assert_close(name, metrics[ours], release, tolerance, absolute=max(1e-7, tolerance * scale))


def test_attention_entropies_and_temperatures_of_every_update_equal_the_release(case: Case) -> None:
    for update in case.updates:
        tolerance = UPDATE_0 if update == 0 else LATER
        outputs = case.record.outputs[update]
        release = case.core[f"u{update}/entropy"]
        assert_close(f"update {update} entropy", outputs["attention_entropy"], release, tolerance)
    if case.model.temperature is None:
        assert all(outputs["temperature"] is None for outputs in case.record.outputs)
        return
    for update in case.updates[:-1]:  # outputs hold the temperature after the step, the release's before it
        after = case.record.outputs[update]["temperature"]
        assert_close(f"update {update} T", after, case.core[f"u{update + 1}/temperature"], LATER)


def test_every_gradient_of_update_0_equals_the_release(case: Case) -> None:
    release = read(case.folder / "grads_0.npz")
    ours = case.record.gradients[0]
    trained = {name for name in release if not name.startswith("target_critic/")}
    if case.model.temperature is None:
        trained = {name for name in trained if not name.startswith(TEMPERATURE)}
    assert ours.keys() == trained
    largest = max(np.abs(release[name]).max() for name in trained)
    for name in sorted(trained):
        if not name.endswith("key/bias"):  # its true gradient is zero; what is stored is rounding
            assert_close(name, ours[name], release[name], UPDATE_0, absolute=1e-8 * largest)
    norm_l1 = sum(np.abs(gradient, dtype=np.float64).sum() for gradient in ours.values())
    assert_close("norm_l1_all", norm_l1, case.core["u0/info/grad/norm_l1_all"], UPDATE_0)
    norm = sum(np.linalg.norm(gradient) for gradient in ours.values())
    assert_close("norm", norm, case.core["u0/info/grad/norm"], UPDATE_0)


def test_learning_rates_equal_the_release(case: Case) -> None:
    for update, rates in enumerate(case.record.learning_rates):
        for group in ("critic", "actor"):
            release = case.core[f"lr/{group}"][update]
            assert rates[group] == pytest.approx(release, rel=1e-5), f"{group} at update {update}"
            assert rates.get(f"{group}_no_decay", rates[group]) == rates[group]
        assert rates.get("temperature", rates["critic"]) == rates["critic"]
    for group, peak in (("critic", case.model.critic_learning_rate), ("actor", case.model.actor_learning_rate)):
        ours = [peak * case.model.learning_rate_factor(u) for u in range(len(case.core[f"lr/{group}"]))]
        np.testing.assert_allclose(ours, case.core[f"lr/{group}"], rtol=1e-5)


@pytest.mark.parametrize("after", [1, 5])
def test_all_parameters_after_updates_equal_the_release(case: Case, after: int) -> None:
    release = read(case.folder / f"params_{after}.npz")
    ours = case.record.parameters[after - 1]
    # The golden README's bounds, which it states for peak learning rates up to 1e-3 and above.
    absolute = 1e-6 if case.model.critic_learning_rate <= 1e-3 else 5e-6
    if case.model.temperature is None:
        release = {name: array for name, array in release.items() if not name.startswith(TEMPERATURE)}
    assert ours.keys() == release.keys()
    for name in sorted(release):
        if not name.endswith("key/bias"):
            assert_close(f"{name} after {after}", ours[name], release[name], 0.0, absolute)
