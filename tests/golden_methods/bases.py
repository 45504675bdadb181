"""What a golden case asks of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tests.golden_methods.arrays import Arrays, Named
from tql_lightning.training.algorithm import Algorithm


class Method(ABC):
    """How a method's model, batches and numbers are found in a golden case of it.

    Attributes:
        metrics: The release's name of a logged number -> ours.
        noise: The release's name of a draw by the field of our noise.
        constants: Logged numbers of parts that the method does not have here, and what they always are.
        unused: Beginnings of names of arrays that nothing in the release uses.
        no_gradient: Ends of names of arrays whose true gradient is 0, so that what is stored is rounding.
        total: The array of an update that is the loss it minimised.
        acting_after: Updates after which acting was recorded.
    """

    metrics: dict[str, str]
    noise: dict[str, str]
    constants: ClassVar[dict[str, float]] = {}
    unused: ClassVar[tuple[str, ...]] = ()
    no_gradient: tuple[str, ...] = ()
    total: ClassVar[str] = "total_loss"
    acting_after: ClassVar[int] = 0

    def __init__(self, config: dict[str, Any], observation_dim: int, action_dim: int) -> None:
        self.config, self.observation_dim, self.action_dim = config, observation_dim, action_dim

    @abstractmethod
    def build(self) -> Algorithm:
        """Our model for the release's configuration."""

    @abstractmethod
    def named(self, model: Any) -> list[Named]:
        """The release's arrays, target networks included."""

    @abstractmethod
    def forward(self, model: Any, batch: Any, noise: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """Every intermediate that a case records of an update, by the release's name."""

    @abstractmethod
    def acting(self, model: Any, act: dict[str, Tensor]) -> dict[str, Any]:
        """Every output of acting that a case records, by the release's name without "act/"."""

    def batch(self, model: Any, arrays: dict[str, Tensor]) -> Any:
        """Our batch from the release's arrays by name."""
        return model.Batch(**{name: arrays[name] for name in model.Batch._fields})

    def draws(self, model: Any, arrays: dict[str, Tensor], batch: Any) -> Any:
        """Our noise from the release's draws by name; what the case does not draw has no influence: NaN."""
        size = len(batch.observations)
        fields = {
            name: arrays.get(self.noise[name], torch.full((size, *draw.shape), torch.nan))
            for name, draw in model.noise_draws().items()
        }
        return model.Noise(**fields)

    def scales(self, core: Arrays) -> dict[str, float]:
        """The largest number that a logged number is a sum or mean of, where that may be larger than the number.

        Args:
            core: Intermediates and "info/..." of one update.
        """
        found = {}
        if "q" in core:
            found.update(dict.fromkeys(("critic/q_mean", "critic/q_max", "critic/q_min"), largest(core["q"])))
        return found


def largest(array: Any) -> float:
    """The largest absolute entry."""
    return float(np.abs(array).max(initial=0.0))
