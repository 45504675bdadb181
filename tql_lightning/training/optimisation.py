"""How an update's gradients change parameters (docs/algorithm.md, section 6): groups, AdamW, schedule, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.temperature import EntropyControl
from tql_lightning.training.algorithm import UpdateLoop
from tql_lightning.training.cuda_graph import ReplayedAdamW
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.sharding import whole
from tql_lightning.training.update import MatmulPrecision


class OptimisedLoop(UpdateLoop):
    """An `UpdateLoop` over critic, temperatures and policy, with one AdamW and one schedule for all of them.

    Args:
        critic_learning_rate: peak learning rate of the critic.
        temperature_learning_rate: peak learning rate of the temperatures; None for the critic's.
        actor_learning_rate: peak learning rate of the policy.
        weight_decay: on weight matrices only.
        lr_schedule: see `learning_rate_factor`.
        warmup_updates: updates of linear warm-up.
        schedule_updates: updates of the whole run.
        gradient_clip_norm: see `clip_each_network`; None for no clipping.
        compile: see `UpdateStep`.
        cuda_graphs: see `UpdateStep`.
        float32_matmul_precision: see `UpdateStep`.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    policy: FlowPolicy
    temperature: EntropyControl | None

    def __init__(
        self,
        *,
        critic_learning_rate: float,
        temperature_learning_rate: float | None,
        actor_learning_rate: float,
        weight_decay: float,
        lr_schedule: Literal["warmup_cosine", "constant"],
        warmup_updates: int,
        schedule_updates: int,
        gradient_clip_norm: float | None,
        compile: bool,  # noqa: A002
        cuda_graphs: bool,
        float32_matmul_precision: MatmulPrecision,
    ) -> None:
        super().__init__(compile, cuda_graphs, float32_matmul_precision)
        if temperature_learning_rate is None:
            temperature_learning_rate = critic_learning_rate
        for name, value in {
            "critic_learning_rate": critic_learning_rate,
            "temperature_learning_rate": temperature_learning_rate,
            "actor_learning_rate": actor_learning_rate,
            "weight_decay": weight_decay,
        }.items():
            require(name, 0.0 <= value < math.inf, "a finite number of at least 0", value)
        schedules = ("warmup_cosine", "constant")
        require("lr_schedule", lr_schedule in schedules, " or ".join(schedules), lr_schedule)
        require("warmup_updates", warmup_updates >= 0, "at least 0", warmup_updates)
        require(
            "schedule_updates", schedule_updates >= 1, "at least 1 (trainer.max_steps, if not set)", schedule_updates
        )
        require("gradient_clip_norm", gradient_clip_norm is None or gradient_clip_norm > 0, "> 0", gradient_clip_norm)
        self.critic_learning_rate, self.actor_learning_rate = critic_learning_rate, actor_learning_rate
        self.temperature_learning_rate = temperature_learning_rate
        self.weight_decay = weight_decay
        self.lr_schedule = lr_schedule
        self.warmup_updates, self.schedule_updates = warmup_updates, schedule_updates
        self.gradient_clip_norm = gradient_clip_norm
        self._gradient_norms: dict[str, Tensor] | None = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters with their peak learning rate and weight decay, which only weight matrices have."""
        critic_lr, actor_lr = self.critic_learning_rate, self.actor_learning_rate
        decaying, plain = _split(self.critic, self.critic.decays)
        policy_decaying, policy_plain = _split(self.policy, lambda _, parameter: parameter.ndim > 1)
        temperatures = [] if self.temperature is None else list(self.temperature.parameters())
        groups = [
            {"name": "critic", "params": decaying, "lr": critic_lr, "weight_decay": self.weight_decay},
            {"name": "critic_no_decay", "params": plain, "lr": critic_lr, "weight_decay": 0.0},
            {"name": "temperature", "params": temperatures, "lr": self.temperature_learning_rate, "weight_decay": 0.0},
            {"name": "actor", "params": policy_decaying, "lr": actor_lr, "weight_decay": self.weight_decay},
            {"name": "actor_no_decay", "params": policy_plain, "lr": actor_lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One AdamW over critic, temperatures and actor, and the one schedule of their learning rates."""
        # The fused step unscales float16 gradients itself, too late for measuring and clipping them.
        scaled = self._trainer is not None and getattr(self.trainer.precision_plugin, "scaler", None) is not None
        # The schedule multiplies peaks that are numbers also where learning rates are tensors: fewer launches.
        peaks = [group | {"initial_lr": group["lr"]} for group in self.parameter_groups()]
        groups = [group | {"lr": self.learning_rate(group["lr"])} for group in peaks]
        capturable = self.cuda_graphs and self.device.type == "cuda"
        optimizer = ReplayedAdamW(groups, fused=not scaled, capturable=capturable)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def learning_rate_factor(self, update: int) -> float:
        """Share of the peak learning rate at an update, counted from 0.

        Linear from 0.01 over ``warmup_updates``, then a cosine to 0.1. As in the release the cosine ends
        ``warmup_updates`` before the run does, and the rest stays at 0.1.
        """
        if self.lr_schedule == "constant":
            return 1.0
        if update < self.warmup_updates:
            return 0.01 + 0.99 * update / self.warmup_updates
        length = self.schedule_updates - 2 * self.warmup_updates
        progress = min((update - self.warmup_updates) / length, 1.0) if length > 0 else 1.0
        return 0.9 * (1.0 + math.cos(math.pi * progress)) / 2.0 + 0.1

    def learning_rate(self, value: float) -> float | Tensor:
        """A learning rate as the optimizer takes it: where updates are replayed it is a tensor that can change."""
        return torch.tensor(value, device=self.device) if self.cuda_graphs else value

    def clip_and_step(self, optimizer: Any, with_norms: bool) -> dict[str, Tensor]:
        """The optimizer's step, with clipped gradients where that is set.

        Args:
            optimizer: as Lightning gives it; where updates are recorded, torch's own.
            with_norms: whether to measure the gradients before they are clipped.

        Returns:
            ``gradient_norm/critic`` and ``gradient_norm/actor``, scalars; empty where they are not wanted.
        """
        self._gradient_norms = {} if with_norms else None
        if self.cuda_graphs:  # else the step begins with it
            self.clip_each_network()
        optimizer.step()
        return self._gradient_norms or {}

    def clip_each_network(self) -> None:
        """Measures and clips the gradient of each network on its own, where wanted."""
        if self._gradient_norms is None and self.gradient_clip_norm is None:
            return
        critic_side = [*self.critic.parameters(), *(self.temperature.parameters() if self.temperature else ())]
        for name, parameters in {"critic": critic_side, "actor": list(self.policy.parameters())}.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = whole(nn.utils.get_total_norm(gradients))
            if self._gradient_norms is not None:
                self._gradient_norms[f"gradient_norm/{name}"] = norm
            if self.gradient_clip_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, self.gradient_clip_norm, norm)

    def on_train_start(self) -> None:
        """Gives a continued run its own learning rates and weight decay, where the checkpoint's were restored.

        The schedule goes on at the update, also where it had been saved a step behind the optimizer.
        """
        super().on_train_start()
        optimizer: torch.optim.Optimizer = self.optimizers().optimizer  # type: ignore[union-attr]
        schedule: Any = self.lr_schedulers()
        factor = self.learning_rate_factor(self.global_step)
        own: dict[str, dict[str, float]] = {group["name"]: group for group in self.parameter_groups()}
        for index, group in enumerate(optimizer.param_groups):
            peak, decay = own[group["name"]]["lr"], own[group["name"]]["weight_decay"]
            group |= {"initial_lr": peak, "lr": self.learning_rate(peak * factor), "weight_decay": decay}
            group["capturable"] = self.cuda_graphs and self.device.type == "cuda"
            schedule.base_lrs[index] = peak
        schedule.last_epoch = self.global_step


def _split(
    module: nn.Module, decays: Callable[[str, nn.Parameter], bool]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """A module's parameters with and without weight decay."""
    decaying = [parameter for name, parameter in module.named_parameters() if decays(name, parameter)]
    plain = [parameter for name, parameter in module.named_parameters() if not decays(name, parameter)]
    return decaying, plain
