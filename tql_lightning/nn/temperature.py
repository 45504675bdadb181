"""Forms of entropy control: weights of the attention entropy in the critic's loss (section 3 of docs/algorithm.md).

The *attention* temperature is such a weight. It rises while the entropy is below its target and falls while it is
above. It is neither a softmax temperature nor SAC's policy temperature.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

TOKEN_GROUPS = ("value", "others")


class EntropyControl(nn.Module, ABC):
    """Weights of the attention entropy of each layer and token group. Subclass it to plug in your own.

    The constructor's first two arguments are ``num_layers`` and ``num_tokens``, taken from the critic.

    Attributes:
        damping: Added to an entropy's weight for each nat that it is below its target; 0 for control without target.
    """

    damping: float = 0.0

    @abstractmethod
    def forward(self) -> Tensor:
        """The temperatures alpha as the temperature loss sees them, with gradient where learned, (L, 2)."""

    @abstractmethod
    def entropy_weight(self) -> Tensor:
        """The temperatures as they weigh the entropy loss, without gradient, (L, 2)."""

    @abstractmethod
    def target_entropy(self, update: int) -> Tensor | None:
        """The targets at an update, counted from 0, in nats, (L, 2); None for control without a target."""


@dataclass(frozen=True)
class TargetSchedule:
    """Moves the targets over training: they start ``start_offset`` away and arrive after ``updates``.

    A step beyond the paper, whose targets are constant.

    Args:
        start_offset: Nats added to every target at update 0.
        updates: Number of updates until the offset is 0.
        form: Shape of the offset's decay: "linear", "cosine" (half a wave), or "constant" (full offset until the end).

    Raises:
        ValueError: ``updates`` is below 1, or ``form`` is unknown.

    Examples:
        >>> TargetSchedule(start_offset=0.5, updates=1000).offset(500)
        0.25
    """

    start_offset: float
    updates: int
    form: Literal["constant", "linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ValueError(f"schedule.updates: expected at least 1, found {self.updates}")
        if self.form not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule.form: expected 'constant', 'linear' or 'cosine', found {self.form!r}")

    def offset(self, update: int) -> float:
        """Returns the offset of the targets at an update, in nats."""
        progress = min(update / self.updates, 1.0)
        match self.form:
            case "linear":
                share = 1.0 - progress
            case "cosine":
                share = 0.5 * (1.0 + math.cos(math.pi * progress))
            case "constant":
                share = float(progress < 1.0)
        return self.start_offset * share


class AttentionTemperature(EntropyControl):
    """One learned temperature and one target entropy per layer and token group.

    Targets are either given, or follow the paper's recipe: ``target_scale`` times the largest entropy ln n
    in every layer, ``last_layer_offset`` added in the last one.

    Args:
        num_layers: L (taken from the critic).
        num_tokens: n (taken from the critic).
        targets: One row (value, others) in nats per layer; null for the recipe.
        target_scale: Share of ln n in the recipe.
        last_layer_offset: Nats that the recipe adds in the last layer.
        initial: Temperature at the start.
        form: "exp" for exp(x), or "sign" for sign(x) (exp|x| - 1), which may become negative.
        minimum: Lower clip of the temperature in the entropy loss.
        maximum: Upper clip of the temperature in the entropy loss.
        schedule: Schedule of the targets over training; null for constant targets.
        damping: Added to a temperature in the entropy loss for each nat that the entropy is below its target, a
            step beyond the paper; 0 for none. A temperature integrates the error and overshoots; this term
            answers at once.

    Raises:
        ValueError: Targets have the wrong shape or lie outside (0, ln n), the form is unknown or cannot take the
            initial value, ``minimum`` is not below ``maximum``, or ``damping`` is below 0.

    Examples:
        >>> temperature = AttentionTemperature(num_layers=2, num_tokens=6, targets=[[1.5, 1.5], [1.2, 1.2]])
        >>> temperature.targets.shape
        torch.Size([2, 2])
    """

    targets: Tensor
    shared = False

    def __init__(
        self,
        num_layers: int,
        num_tokens: int,
        targets: list[tuple[float, float]] | None = None,
        target_scale: float = 0.8,
        last_layer_offset: float = -0.5,
        initial: float = 1.0,
        form: Literal["exp", "sign"] = "exp",
        minimum: float = -100.0,
        maximum: float = 100.0,
        schedule: TargetSchedule | None = None,
        damping: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= damping < math.inf:
            raise ValueError(f"damping: expected a finite number of at least 0, found {damping}")
        if not minimum < maximum:
            raise ValueError(f"minimum: expected less than maximum={maximum}, found {minimum}")
        if form not in ("exp", "sign"):
            raise ValueError(f"form: expected 'exp' or 'sign', found {form!r}")
        if not math.isfinite(initial):
            raise ValueError(f"initial: expected a finite temperature, found {initial}")
        if form == "exp" and initial <= 0.0:
            raise ValueError(f"initial: form 'exp' needs a temperature above 0, found {initial}")
        if form == "sign" and initial == 0.0:
            raise ValueError("initial: form 'sign' never leaves 0 (its gradient is 0 there); use e.g. 1.0")
        if targets is None:
            highest = target_scale * math.log(num_tokens)
            targets = [(highest, highest)] * (num_layers - 1) + [(highest + last_layer_offset,) * 2]
        self.register_buffer("targets", check_targets(targets, num_layers, num_tokens), persistent=False)
        if schedule is not None:
            start = [[target + schedule.start_offset for target in row] for row in targets]
            check_targets(start, num_layers, num_tokens, at="at the start of the schedule, ")
        raw = math.log(initial) if form == "exp" else math.copysign(math.log1p(abs(initial)), initial)
        self.raw = nn.Parameter(torch.full((1, 1) if self.shared else (num_layers, 2), raw))
        self.form = form
        self.minimum, self.maximum = minimum, maximum
        self.schedule = schedule
        self.damping = damping

    def forward(self) -> Tensor:
        """The temperatures, (L, 2), not clipped."""
        temperature = self.raw.exp() if self.form == "exp" else self.raw.sign() * self.raw.abs().expm1()
        return temperature.expand_as(self.targets)

    def entropy_weight(self) -> Tensor:
        """The temperatures as they weigh the entropy loss: clipped and without gradient, (L, 2)."""
        temperature: Tensor = self()
        return temperature.detach().clamp(self.minimum, self.maximum)

    def target_entropy(self, update: int) -> Tensor:
        """See `EntropyControl.target_entropy`."""
        return self.targets if self.schedule is None else self.targets + self.schedule.offset(update)


class SingleTemperature(AttentionTemperature):
    """One learned temperature for all layers and token groups, an ablation of the paper; see `AttentionTemperature`.

    Examples:
        >>> SingleTemperature(num_layers=2, num_tokens=6)().shape
        torch.Size([2, 2])
    """

    shared = True


class FixedPenalty(EntropyControl):
    """A constant weight of the attention entropy, without target: an ablation of the paper.

    Args:
        num_layers: L (taken from the critic).
        num_tokens: n (taken from the critic; not used).
        weight: alpha; a positive weight raises entropy, a negative one lowers it.

    Raises:
        ValueError: ``weight`` is 0 (set the model's entropy control to null instead) or not finite.

    Examples:
        >>> FixedPenalty(num_layers=2, num_tokens=6, weight=0.5)()
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    weight: Tensor

    def __init__(self, num_layers: int, num_tokens: int, weight: float = 1.0) -> None:
        del num_tokens
        super().__init__()
        if weight == 0.0 or not math.isfinite(weight):
            raise ValueError(
                f"FixedPenalty.weight: expected a finite number other than 0, found {weight}; "
                "for no control set entropy_control to null"
            )
        self.register_buffer("weight", torch.full((num_layers, 2), weight), persistent=False)

    def forward(self) -> Tensor:
        """The constant weight, (L, 2)."""
        return self.weight

    def entropy_weight(self) -> Tensor:
        """The constant weight, (L, 2)."""
        return self.weight

    def target_entropy(self, update: int) -> None:
        """None: there is no target."""


def check_targets(targets: Sequence[Sequence[float]], num_layers: int, num_tokens: int, at: str = "") -> Tensor:
    """Checks entropy targets and makes a tensor (L, 2) of them.

    Args:
        targets: One row (value, others) in nats per layer.
        num_layers: L.
        num_tokens: n.
        at: Prefix of the message that says which targets these are.

    Raises:
        ValueError: A target is not between 0 and ln n; the message gives the range.
    """
    largest = math.log(num_tokens)
    reachable = f"above 0 and below ln {num_tokens} = {largest:.3f} nats"
    try:
        table = np.asarray(targets, dtype=np.float64)
    except (TypeError, ValueError):  # rows of different lengths, or not numbers
        table = np.empty(0)
    if table.shape != (num_layers, len(TOKEN_GROUPS)):
        raise ValueError(
            f"targets: expected {num_layers} rows (value, others), one per attention layer, each {reachable}; "
            f"found {targets}"
        )
    for layer, row in enumerate(table.tolist()):
        for group, target in zip(TOKEN_GROUPS, row, strict=True):
            if not 0.0 < target < largest:
                raise ValueError(
                    f"targets: {at}layer {layer}, {group}: expected {reachable}, found {target}; lower "
                    "target_scale, raise last_layer_offset, or give targets for this dataset's token count"
                )
    return torch.tensor(table, dtype=torch.float32)
