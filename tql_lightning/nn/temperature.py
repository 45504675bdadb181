"""Learned temperatures that hold the attention entropy near its targets (spec section 3).

The *attention* temperature is a loss weight: it rises while the entropy is under its target and falls
while it is over. It is neither a softmax temperature nor SAC's policy temperature.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

TOKEN_GROUPS = ("value", "others")


class AttentionTemperature(nn.Module):
    """One learned temperature per layer and token group, with the entropy each is to reach.

    Targets are either given, or follow the paper's recipe: ``target_scale`` times the largest entropy ln n
    in every layer, ``last_layer_offset`` added in the last one.

    Args:
        num_layers: L (taken from the critic).
        num_tokens: n (taken from the critic).
        targets: one row (value, others) in nats per layer; null for the recipe.
        target_scale: share of ln n that the recipe aims at.
        last_layer_offset: what the recipe adds in the last layer, in nats.
        initial: temperature at the start.
        form: "exp": exp(x), or "sign": sign(x) (exp|x| - 1), which may become negative.
        minimum: lower clip of the temperature where it weighs the entropy loss.
        maximum: upper clip of the temperature where it weighs the entropy loss.

    Raises:
        ValueError: targets of the wrong shape or outside (0, ln n), or an initial value the form cannot take.
    """

    targets: Tensor

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
    ) -> None:
        super().__init__()
        if minimum >= maximum:
            raise ValueError(f"minimum: expected less than maximum={maximum}, found {minimum}")
        if form not in ("exp", "sign"):
            raise ValueError(f"form: expected 'exp' or 'sign', found {form!r}")
        if form == "exp" and initial <= 0.0:
            raise ValueError(f"initial: form 'exp' needs a temperature above 0, found {initial}")
        if form == "sign" and initial == 0.0:
            raise ValueError("initial: form 'sign' never leaves 0 (its gradient is 0 there); use e.g. 1.0")
        if targets is None:
            highest = target_scale * math.log(num_tokens)
            targets = [(highest, highest)] * (num_layers - 1) + [(highest + last_layer_offset,) * 2]
        self.register_buffer("targets", check_targets(targets, num_layers, num_tokens), persistent=False)
        raw = math.log(initial) if form == "exp" else math.copysign(math.log1p(abs(initial)), initial)
        self.raw = nn.Parameter(torch.full((num_layers, 2), raw))
        self.form = form
        self.minimum, self.maximum = minimum, maximum

    def forward(self) -> Tensor:
        """The temperatures, (L, 2), not clipped."""
        if self.form == "exp":
            return self.raw.exp()
        return self.raw.sign() * self.raw.abs().expm1()

    def entropy_weight(self) -> Tensor:
        """The temperatures as they weigh the entropy loss: clipped and without gradient, (L, 2)."""
        temperature: Tensor = self()
        return temperature.detach().clamp(self.minimum, self.maximum)


def check_targets(targets: list[tuple[float, float]], num_layers: int, num_tokens: int) -> Tensor:
    """Entropy targets as a tensor (L, 2).

    Args:
        targets: one row (value, others) in nats per layer.
        num_layers: L.
        num_tokens: n.

    Raises:
        ValueError: a target that no attention over n tokens can hold; the message gives the range.
    """
    largest = math.log(num_tokens)
    reachable = f"above 0 and below ln {num_tokens} = {largest:.3f} nats"
    if len(targets) != num_layers or any(len(row) != len(TOKEN_GROUPS) for row in targets):
        raise ValueError(
            f"targets: expected {num_layers} rows (value, others), one per attention layer, each {reachable}; "
            f"found {[list(row) for row in targets]}"
        )
    for layer, row in enumerate(targets):
        for group, target in zip(TOKEN_GROUPS, row, strict=True):
            if not 0.0 < target < largest:
                raise ValueError(
                    f"targets: layer {layer}, {group}: expected {reachable}, found {target}; lower "
                    "target_scale, raise last_layer_offset, or give targets for this dataset's token count"
                )
    return torch.tensor(targets, dtype=torch.float32)
