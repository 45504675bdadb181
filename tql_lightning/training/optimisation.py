"""Parameter groups, AdamW, learning rates and gradient clipping (docs/algorithm.md, section 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tql_lightning.nn.weight_decay import is_decaying_matrix
from tql_lightning.training.cuda_graph import ReplayedAdamW
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.restoring import RestorableSchedule, checked_state
from tql_lightning.training.sharding import whole

Schedule = Literal["warmup_cosine", "constant"]
Decays = Callable[[str, nn.Parameter], bool]
NO_DECAY = "_no_decay"  # suffix of the torch parameter group without weight decay


def nothing(_: str, __: nn.Parameter) -> bool:
    """No weight decay."""
    return False


@dataclass(frozen=True)
class ParameterGroup:
    """A network that shares a learning rate.

    Args:
        name: Name of the group, as in ``optimisation.learning_rates`` and ``train/learning_rate/NAME``.
        module: Network whose parameters the group holds; those that need no gradient are left out.
        decays: Says by name and parameter whether it has weight decay; None for `is_decaying_matrix`.
        clipped_with: Group whose gradient norm this one is a part of; None for its own.

    Examples:
        >>> decaying, others = ParameterGroup("critic", nn.Linear(4, 2)).split()
        >>> [parameter.ndim for parameter in decaying], [parameter.ndim for parameter in others]
        ([2], [1])
    """

    name: str
    module: nn.Module
    decays: Decays | None = None
    clipped_with: str | None = None

    def split(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trained parameters with weight decay, and those without."""
        decays = self.decays or partial(is_decaying_matrix, self.module)
        named = [(name, each) for name, each in self.module.named_parameters() if each.requires_grad]
        decaying = [each for name, each in named if decays(name, each)]
        return decaying, [each for name, each in named if not decays(name, each)]

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]


@dataclass  # not frozen: Lightning copies settings field by field
class Optimisation:
    """One AdamW over all networks, the schedule of its learning rates, weight decay and clipping.

    Args:
        learning_rate: Peak learning rate of every network without one of its own.
        learning_rates: Peak learning rates by network, such as ``{actor: 5.0e-4}``.
        weight_decay: Weight decay of AdamW, on weight matrices only.
        lr_schedule: "constant", or "warmup_cosine": linear from 0.01 of the peak over ``warmup_updates``, then a cosine
            to 0.1 of it. As in the release of TQL the cosine ends ``warmup_updates`` before the run does.
        warmup_updates: Updates of linear warm-up.
        schedule_updates: Updates of the whole run, on which the cosine is laid out; null for ``trainer.max_steps``.
        gradient_clip_norm: Largest 2-norm of each network's gradient; null for no clipping.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Examples:
        >>> settings = Optimisation(learning_rate=1e-4, learning_rates={"actor": 5e-4}, warmup_updates=100)
        >>> settings.peak("actor"), settings.peak("critic")
        (0.0005, 0.0001)
    """

    learning_rate: float = 3e-4
    learning_rates: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    lr_schedule: Schedule = "constant"
    warmup_updates: int = 0
    schedule_updates: int | None = None
    gradient_clip_norm: float | None = None

    def __post_init__(self) -> None:
        rates = {f"learning_rates.{name}": value for name, value in self.learning_rates.items()}
        for name, value in {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay, **rates}.items():
            require(f"optimisation.{name}", 0.0 <= value < math.inf, "a finite number of at least 0", value)
        schedules, clip = get_args(Schedule), self.gradient_clip_norm
        require("optimisation.lr_schedule", self.lr_schedule in schedules, " or ".join(schedules), self.lr_schedule)
        require("optimisation.warmup_updates", self.warmup_updates >= 0, "at least 0", self.warmup_updates)
        expected, updates = "at least 1 (trainer.max_steps, if not set)", self.schedule_updates
        require("optimisation.schedule_updates", updates is None or updates >= 1, expected, updates)
        require("optimisation.gradient_clip_norm", clip is None or clip > 0, "above 0", clip)

    def for_run(self, max_steps: int) -> Optimisation:
        """Returns these settings with ``schedule_updates`` set to the run's length, unless it is set already.

        Raises:
            ValueError: The schedule needs a length, and the run has no end.
        """
        if self.schedule_updates is not None:
            return self
        if max_steps < 0 and self.lr_schedule == "constant":
            return self
        if max_steps < 0:
            raise ValueError(
                "model.optimisation.schedule_updates: expected a number where trainer.max_steps sets no end, found "
                "null; set either"
            )
        return replace(self, schedule_updates=max_steps)

    def peak(self, group: str) -> float:
        """Peak learning rate of a group."""
        return self.learning_rates.get(group, self.learning_rate)

    def factor(self, update: int) -> float:
        """Share of the peak learning rate at an update, counted from 0; see ``lr_schedule``."""
        if self.lr_schedule == "constant":
            return 1.0
        if update < self.warmup_updates:
            return 0.01 + 0.99 * update / self.warmup_updates
        if self.schedule_updates is None:
            raise ValueError("model.optimisation.schedule_updates: expected a number outside a trainer, found null")
        length = self.schedule_updates - 2 * self.warmup_updates
        progress = min((update - self.warmup_updates) / length, 1.0) if length > 0 else 1.0
        return 0.9 * (1.0 + math.cos(math.pi * progress)) / 2.0 + 0.1

    def torch_groups(self, groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
        """Groups as torch's optimizers take them: with peak learning rates, each split by weight decay."""
        split = []
        for group in groups:
            decaying, plain = group.split()
            plain_name = group.name + NO_DECAY if decaying else group.name
            for name, parameters, decay in ((group.name, decaying, self.weight_decay), (plain_name, plain, 0.0)):
                if parameters:
                    split.append(
                        {"name": name, "params": parameters, "lr": self.peak(group.name), "weight_decay": decay}
                    )
        return split

    def check_groups(self, model: nn.Module, groups: Sequence[ParameterGroup]) -> None:
        """Refuses parameters that no group or several groups would train, and learning rates of no group.

        Args:
            model: Algorithm that is to be trained.
            groups: Its `parameter_groups`.

        Raises:
            ValueError: The message names the parameter or the learning rate.
        """
        names = [group.name for group in groups]
        stray = [name for name in self.learning_rates if name not in names]
        if stray:
            raise ValueError(
                f"model.optimisation.learning_rates.{stray[0]}: expected a network of {type(model).__name__}, one of "
                f"{', '.join(names)}, found none of this name; leave it out"
            )
        holders: dict[nn.Parameter, list[str]] = {}
        for group in groups:
            for parameter in group.parameters():
                holders.setdefault(parameter, []).append(group.name)
        for name, parameter in model.named_parameters():
            found = holders.get(parameter, [])
            if parameter.requires_grad and len(found) != 1:
                held = f"in {' and '.join(found)}" if found else "in none, so that it would never move"
                raise ValueError(
                    f"{type(model).__name__}.parameter_groups: expected every trainable parameter in one group, found "
                    f"{name} {held}; return a ParameterGroup that holds it, or call requires_grad_(False) on what is "
                    "not trained"
                )

    def check_optimizers(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], schedules: Sequence[Any], replayed: bool
    ) -> None:
        """Refuses what a subclass's own ``configure_optimizers`` made, if updates cannot be made with it.

        Args:
            model: Algorithm that is to be trained.
            optimizers: The trainer's optimizers.
            schedules: Their schedules.
            replayed: See `optimizer`.

        Raises:
            ValueError: There is not one optimizer with at most one schedule, or it leaves out a trainable parameter.
        """
        expected = "one optimizer for all networks, and at most one schedule that steps without a metric"
        plateau = any(isinstance(each, torch.optim.lr_scheduler.ReduceLROnPlateau) for each in schedules)
        found = None
        if len(optimizers) != 1 or len(schedules) > 1 or plateau:
            names = [type(each).__name__ for each in (*optimizers, *schedules)]
            found = ", ".join(names) or "none"
        elif replayed and not isinstance(optimizers[0], ReplayedAdamW):
            expected, found = "super's optimizer with execution.cuda_graphs", type(optimizers[0]).__name__
        else:
            held = {id(parameter) for group in optimizers[0].param_groups for parameter in group["params"]}
            left_out = [n for n, each in model.named_parameters() if each.requires_grad and id(each) not in held]
            if left_out:
                expected, found = "every trainable parameter", f"none of {left_out[0]}, which would never move"
        if found is not None:
            raise ValueError(
                f"{type(model).__name__}.configure_optimizers: expected {expected}, found {found}; change what "
                "super().configure_optimizers() returns, or override parameter_groups alone"
            )

    def optimizer(
        self, groups: Sequence[ParameterGroup], replayed: bool, device: torch.device, scaled: bool
    ) -> tuple[ReplayedAdamW, RestorableSchedule]:
        """Makes the optimizer and the schedule of its learning rates.

        Args:
            groups: Networks to train.
            replayed: Whether updates are replayed as a CUDA graph; learning rates are tensors then, which can change.
            device: Device of the parameters.
            scaled: Whether gradients are scaled (float16). The fused step would unscale them itself, too late for
                measuring and clipping them.
        """
        # Peaks stay numbers where learning rates are tensors, so that the schedule launches fewer kernels.
        split = [group | {"initial_lr": group["lr"]} for group in self.torch_groups(groups)]
        split = [group | {"lr": learning_rate(group["lr"], replayed, device)} for group in split]
        optimizer = ReplayedAdamW(split, fused=not scaled, capturable=replayed and device.type == "cuda")
        return optimizer, RestorableSchedule(optimizer, self.factor)

    def restore(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Any,
        groups: Sequence[ParameterGroup],
        update: int,
        replayed: bool,
        device: torch.device,
    ) -> None:
        """Replaces the checkpoint's learning rates and weight decay by the run's own.

        The schedule continues at ``update``, even if the checkpoint has it one step behind the optimizer.

        Args:
            optimizer: Made by `optimizer`.
            schedule: Made by `optimizer`.
            groups: Networks to train.
            update: Update that the run continues from.
            replayed: See `optimizer`.
            device: See `optimizer`.
        """
        own = {group["name"]: group for group in self.torch_groups(groups)}
        for index, group in enumerate(optimizer.param_groups):
            if group.get("name") not in own or not isinstance(schedule, RestorableSchedule):
                return  # an optimizer or schedule that a subclass made
            peak, decay = own[group["name"]]["lr"], own[group["name"]]["weight_decay"]
            rate = learning_rate(peak * schedule.lr_lambdas[index](update), replayed, device)
            group |= {"initial_lr": peak, "lr": rate, "weight_decay": decay}
            group["capturable"] = replayed and device.type == "cuda"
            schedule.base_lrs[index] = peak
        schedule.last_epoch = update

    def clip(self, groups: Sequence[ParameterGroup], measure: bool) -> dict[str, Tensor]:
        """Clips the gradient of each network to ``gradient_clip_norm``, if that is set.

        Args:
            groups: Networks to train.
            measure: Whether to compute norms even without clipping.

        Returns:
            2-norms before clipping by name, ``gradient_norm/NAME``; empty if none was computed.
        """
        if not measure and self.gradient_clip_norm is None:
            return {}
        norms = {}
        for name, parameters in _clipped_together(groups).items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norms[f"gradient_norm/{name}"] = norm = whole(nn.utils.get_total_norm(gradients))
            if self.gradient_clip_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, self.gradient_clip_norm, norm)
        return norms


def load_moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads another run's moments and counts of steps, without its learning rates and weight decay.

    Raises:
        ValueError: That run trains other parameters.
    """
    own = optimizer.state_dict()["param_groups"]
    trained = [{group.get("name"): len(group["params"]) for group in groups} for groups in (state["param_groups"], own)]
    if trained[0] != trained[1]:
        raise ValueError(
            f"weights_optimizer: expected a checkpoint that trains {trained[1]} tensors by network, found "
            f"{trained[0]}; leave it out"
        )
    optimizer.load_state_dict(checked_state(optimizer, {"state": state["state"], "param_groups": own}))


def learning_rate(value: float, replayed: bool, device: torch.device) -> float | Tensor:
    """Turns a learning rate into a tensor where updates are replayed, since a CUDA graph cannot read new numbers."""
    return torch.tensor(value, device=device) if replayed else value


def _clipped_together(groups: Sequence[ParameterGroup]) -> Mapping[str, list[nn.Parameter]]:
    """Returns parameters by the name of their common gradient norm."""
    together: dict[str, list[nn.Parameter]] = {}
    for group in groups:
        together.setdefault(group.clipped_with or group.name, []).extend(group.parameters())
    return together
