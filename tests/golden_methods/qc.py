"""QC and QC-FQL."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from tests.golden_methods.arrays import Arrays, Named, mlp, mlp_critic
from tests.golden_methods.bases import Method, largest
from tql_lightning.algorithms.critics import frozen_values
from tql_lightning.algorithms.losses import flow_interpolation, td_target
from tql_lightning.algorithms.qc import QC, QCBatch
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.nn.policy import BehaviourFlow, FlowPolicy
from tql_lightning.training.optimisation import Optimisation
from tql_lightning.training.problem import Problem


class QCGolden(Method):
    noise = {  # noqa: RUF012
        "next_action": "next_action_noise",
        "flow_x0": "flow_x0",
        "flow_t": "flow_t",
        "distillation": "distill_noise",
    }

    constants = {"actor/distill_loss": 0.0}  # noqa: RUF012
    unused = ("actor_onestep_flow/",)

    @property
    def distils(self) -> bool:
        return bool(self.config["actor_type"] == "distill-ddpg")

    @property
    def steps(self) -> int:
        """Actions that one decision is made of."""
        return int(self.config["horizon_length"]) if self.config["action_chunking"] else 1

    @property
    def metrics(self) -> dict[str, str]:  # type: ignore[override]
        return {
            "critic/critic_loss": "critic_loss",
            "critic/q_mean": "q_mean",
            "critic/q_max": "q_max",
            "critic/q_min": "q_min",
            "actor/actor_loss": "actor_loss",
            "actor/bc_flow_loss": "behaviour_flow_loss",
        } | ({"actor/distill_loss": "distillation_loss"} if self.distils else {})

    def build(self) -> QC:
        config = self.config
        policy = partial(
            FlowPolicy if self.distils else BehaviourFlow,
            hidden_dims=config["actor_hidden_dims"],
            layer_norm=config["actor_layer_norm"],
            flow_steps=config["flow_steps"],
            num_samples=config["actor_num_samples"],
            time_features=config["fourier_feature_dim"] if config["use_fourier_features"] else 0,
        )
        return QC(
            self.observation_dim,
            self.action_dim * self.steps,
            critic=partial(
                MLPCritic,
                hidden_dims=config["value_hidden_dims"],
                layer_norm=config["layer_norm"],
                num_critics=config["num_qs"],
            ),
            policy=policy,
            problem=Problem(action_chunk=self.steps),
            discount=config["discount"],
            tau=config["tau"],
            target_aggregation=config["q_agg"],
            bc_coefficient=config["alpha"],
            extraction="fql" if self.distils else "implicit",
            optimisation=Optimisation(learning_rate=config["lr"], weight_decay=config["weight_decay"]),
            release_decay=True,
        )

    def named(self, model: Any) -> list[Named]:
        arrays = [
            *mlp_critic("critic", model.critic),
            *mlp_critic("target_critic", model.target_critic),
            *mlp("actor_bc_flow/mlp", model.policy.behaviour_flow),
        ]
        if self.distils:
            arrays += mlp("actor_onestep_flow/mlp", model.policy.one_step_policy)
        return arrays

    def batch(self, model: Any, arrays: dict[str, Tensor]) -> QCBatch:
        """The window's last column, whose mask carries the discount of the window but for one step."""
        horizon = arrays["rewards"].shape[1]
        actions = arrays["actions"][:, : self.steps].flatten(1)
        valid = arrays["valid"]
        return QCBatch(
            observations=arrays["observations"],
            actions=actions,
            rewards=arrays["rewards"][:, -1],
            next_observations=arrays["next_observations"][:, -1],
            masks=model.discount ** (horizon - 1) * arrays["masks"][:, -1],
            valid=valid,
        )

    def forward(self, model: Any, batch: Any, noise: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
        observations, following = batch.observations, batch.next_observations
        next_actions = model.act(following, noise.next_action)
        next_values = model.target_critic(following, next_actions).values
        mean = model.target_aggregation == "mean"
        x_t = flow_interpolation(noise.flow_x0, batch.actions, noise.flow_t)
        found = {
            "next_actions": next_actions,
            "next_q_ensemble": next_values,
            "next_q": next_values.mean(dim=-1) if mean else next_values.amin(dim=-1),
            "target_q": td_target(batch.rewards, batch.masks, next_values, model.discount, model.target_aggregation),
            "q": model.critic(observations, batch.actions).values,
            "bc_x_t": x_t,
            "bc_pred": model.policy.velocity(observations, x_t, noise.flow_t),
        }
        if not self.distils:
            candidates, values, choice = self.candidates(model, following, noise.next_action)
            names = ("next_candidates", "next_candidate_q_ensemble", "next_choice")
            return found | dict(zip(names, (candidates, values, choice), strict=True))
        student = model.policy.one_step_actions(observations, noise.distillation)
        return found | {
            "flow_actions": model.policy.flow_actions(observations, noise.distillation),
            "onestep_actions": student,
            "actor_q_ensemble": frozen_values(model.critic, observations, student.clamp(-1.0, 1.0)),
        }

    def candidates(self, model: Any, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        repeated = observations.unsqueeze(1).expand(-1, noise.shape[1], -1)
        candidates = model.policy.flow_actions(repeated, noise)
        values = model.critic(repeated.flatten(0, 1), candidates.flatten(0, 1)).values.unflatten(0, noise.shape[:2])
        scores = values.mean(dim=-1) if model.target_aggregation == "mean" else values.amin(dim=-1)
        return candidates, values, scores.argmax(dim=-1)

    def acting(self, model: Any, act: dict[str, Tensor]) -> dict[str, Any]:
        observations, noise = act["observations"], act["noise"]
        found: dict[str, Any] = {"actions": model.actor().act(observations, noise)}
        if not self.distils:
            candidates, values, choice = self.candidates(model, observations, noise)
            found |= {"candidates": candidates, "candidate_q_ensemble": values, "choice": choice}
        return found

    def scales(self, core: Arrays) -> dict[str, float]:
        found = super().scales(core)
        if self.distils:
            parts = [largest(core["actor_q_ensemble"]), self.config["alpha"] * largest(core["info/actor/distill_loss"])]
            found["actor/actor_loss"] = max(parts)
        return found
