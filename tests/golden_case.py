"""A golden case: the real `TQL` made from its configuration, run under a real Trainer on its batches and noise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from tql_lightning.algorithms.tql import TQL, TQLNoise
from tql_lightning.batch import Batch
from tql_lightning.export.release import load_release_params, release_arrays
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.temperature import AttentionTemperature
from tql_lightning.training.optimisation import Optimisation

Arrays = dict[str, np.ndarray]
# Shares of an array's largest entry, or of what it is a sum of.
EXACT = 1e-6  # distance of ours from float64 that is always allowed
SAME = 1e-5  # distance of the release from float64 that is always allowed
FARTHER = 3.0  # times the release's distance from float64 that ours may be away from it
# Times our float32's distance from our float64, which is rounding alone, that the release may be away from the latter;
# beyond that its mathematics is another.
ROUNDING_OF_OTHERS = 10.0


def read(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def build(config: dict[str, Any], observation_dim: int, action_dim: int) -> TQL:
    """Our model for a configuration of the release."""
    entropy_control, out_of_reach = None, False
    if config["use_attention_entropy_loss"]:
        targets = config["attention_entropy_target"]
        largest = math.log(1 + observation_dim + action_dim)
        out_of_reach = not all(
            0.0 < target < largest for row in targets for target in row
        )  # the release runs with these
        entropy_control = partial(
            AttentionTemperature,
            targets=None if out_of_reach else targets,
            initial=config["attention_entropy_temperature_init"],
            form=config["temp_type"],
            minimum=config["attention_entropy_temperature_min"],
            maximum=config["attention_entropy_temperature_max"],
        )
    model = TQL(
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
        optimisation=Optimisation(
            learning_rate=config["critic_lr"],
            learning_rates={"actor": config["actor_lr"]},
            weight_decay=config["adamw_weight_decay"] if config["optimizer"] == "adamw" else 0.0,
            lr_schedule="warmup_cosine" if config["warmup_steps"] else "constant",
            warmup_updates=config["warmup_steps"],
            schedule_updates=config["train_steps"],
            gradient_clip_norm=config["critic_grad_clip"] or None,
        ),
    )
    if out_of_reach and model.temperature is not None:
        model.temperature.get_buffer("targets").copy_(torch.tensor(targets))
    return model


class Judged(NamedTuple):
    """An array of any shape in float32, the release's, and ours in float64.

    Attributes:
        scale: Largest number that the array's entries are sums of; None for the largest entry itself.
        floor: Absolute distance that is always allowed.
    """

    ours: Any
    release: Any
    judge: Any
    scale: float | None = None
    floor: float = 1e-7


class RecordedUpdates:
    """The recorded batches and noise as a trainer's data: one update a step."""

    def __init__(self, case: Case, num_updates: int, dtype: torch.dtype) -> None:
        self.case, self.num_updates, self.dtype = case, num_updates, dtype

    def __iter__(self) -> Iterator[tuple[Batch, TQLNoise]]:
        for update in range(self.num_updates):
            batch, noise = self.case.batch(update, self.dtype), self.case.noise(update, self.dtype)
            yield Batch(*(part[None] for part in batch)), TQLNoise(*(part[None] for part in noise))


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
    judge: Record  # of the same updates in float64
    reached: dict[str, float]

    @property
    def updates(self) -> range:
        return range(len(self.record.outputs))

    def batch(self, update: int, dtype: torch.dtype = torch.float32) -> Batch:
        return Batch(*(torch.from_numpy(self.core[f"u{update}/batch/{name}"]).to(dtype) for name in Batch._fields))

    def noise(self, update: int, dtype: torch.dtype = torch.float32) -> TQLNoise:
        names = ("next_action_noise", "flow_x0", "flow_t", "distill_noise", "metric_noise")
        return TQLNoise(*(torch.from_numpy(self.core[f"u{update}/draw/{name}"]).to(dtype) for name in names))

    def judged(self, kind: str, arrays: Mapping[str, Judged], same: float = SAME) -> None:
        """Asserts that ours are about as near to the same computation in float64 as the release's numbers are.

        The largest distances of all arrays are compared: one number alone may be near by luck.

        Args:
            kind: Kind under which the largest difference from the release, over its scale, is noted.
            arrays: Arrays by name.
            same: Distance of the release from float64 that is always allowed.
        """
        own, theirs = {}, {}
        for name, each in arrays.items():
            ours, release, judge = (np.asarray(given, dtype=np.float64) for given in each[:3])
            assert ours.shape == release.shape == judge.shape, f"{name}: shape {ours.shape}, release {release.shape}"
            scale = max(each.scale or 0.0, float(np.abs(release).max(initial=0.0)))
            own[name], theirs[name] = (
                distance / scale if scale > 0.0 and distance > each.floor else 0.0
                for distance in (float(np.abs(found - judge).max(initial=0.0)) for found in (ours, release))
            )
            if scale > 0.0:
                difference = float(np.abs(ours - release).max(initial=0.0))
                self.reached[kind] = max(self.reached.get(kind, 0.0), difference / scale)
        farthest, release_farthest = max(own, key=own.__getitem__), max(theirs, key=theirs.__getitem__)
        ours_most, release_most = own[farthest], theirs[release_farthest]
        assert release_most <= max(same, ROUNDING_OF_OTHERS * ours_most), (
            f"{kind}: the release's {release_farthest} is {release_most:.3g} from float64, more than rounding explains"
        )
        assert ours_most <= max(EXACT, FARTHER * release_most), (
            f"{kind}: {farthest} is {ours_most:.3g} from float64, and the release at most {release_most:.3g}"
        )

    def compare(
        self,
        kind: str,
        name: str,
        ours: Any,
        release: Any,
        tolerance: float,
        scale: float | None = None,
        floor: float = 1e-7,
        absolute: bool = False,
    ) -> None:
        """Asserts that two arrays are equal to a tolerance, and notes what was reached.

        Args:
            kind: under which the largest difference over ``scale`` is noted.
            name: of the array, for the message.
            ours: any shape.
            release: the same shape.
            tolerance: of the difference over ``scale``.
            scale: largest number that the array's entries are sums of; None for the largest entry itself.
            floor: absolute difference that is always allowed.
            absolute: take 1 for the scale.
        """
        ours, release = np.asarray(ours, dtype=np.float64), np.asarray(release, dtype=np.float64)
        assert ours.shape == release.shape, f"{name}: shape {ours.shape}, release {release.shape}"
        difference = float(np.abs(ours - release).max(initial=0.0))
        scale = 1.0 if absolute else max(scale or 0.0, float(np.abs(release).max(initial=0.0)))
        if scale > 0.0:
            self.reached[kind] = max(self.reached.get(kind, 0.0), difference / scale)
        allowed = max(floor, tolerance * scale)
        assert difference <= allowed, f"{name}: differs by {difference:.3g}, allowed {allowed:.3g}"


def run_case(folder: Path, scratch: Path, reached: dict[str, float]) -> Case:
    """Runs a case's updates by a real Trainer and records them.

    Args:
        folder: of the case.
        scratch: where the Trainer may write.
        reached: takes the largest difference of each kind of number.
    """
    torch.set_num_threads(1)
    settings = json.loads((folder / "config.json").read_text())
    models = [build(settings["config"], settings["obs_dim"], settings["action_dim"]) for _ in range(2)]
    for model in models:
        load_release_params(model, folder / "params_0.npz", ignore_temperature=True)
    core = read(folder / "core.npz")
    case = Case(settings["config"], core, folder, models[0], Record(), Record(), reached)
    run_updates(case, models[0], case.record, settings["K"], scratch, torch.float32)
    run_updates(case, models[1].double(), case.judge, settings["K"], scratch, torch.float64)
    return case


def run_updates(case: Case, model: TQL, record: Record, num_updates: int, scratch: Path, dtype: torch.dtype) -> None:
    """Runs a case's updates in a number type."""
    trainer = Trainer(
        max_steps=num_updates,
        log_every_n_steps=1,
        limit_val_batches=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[record],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=scratch,
        precision="64-true" if dtype == torch.float64 else "32-true",
    )
    trainer.fit(model, train_dataloaders=RecordedUpdates(case, num_updates, dtype))
