"""The online phase of a run, as its data see it: a source of transitions that grows, and minibatches with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tql_lightning.data.replay import GrowingWindows
from tql_lightning.data.sampler import TransitionSampler, positions
from tql_lightning.data.transitions import DatasetError
from tql_lightning.data.windows import Windows

Mode = Literal["retain", "balanced", "empty"]


class Experience(ABC):
    """Transitions that are collected during a run's online phase, which follows its offline updates.

    Attributes:
        mode: How minibatches combine the dataset with what is collected; see `MixedSampler`.
        windows: Windows of what has been collected so far.
    """

    mode: Mode
    windows: GrowingWindows

    @property
    @abstractmethod
    def updates(self) -> int:
        """Number of online updates."""

    @property
    @abstractmethod
    def fixed_settings(self) -> dict[str, Any]:
        """Settings that a continued run must not change."""

    @abstractmethod
    def attach(self, trainer: Any, device: torch.device) -> None:
        """Prepares for a fit.

        Args:
            trainer: Trainer with its model and datamodule.
            device: Device on which the dataset's rows are gathered.
        """

    @abstractmethod
    def collect(self, update: int) -> None:
        """Collects what has to be there before an online update, counted from 0."""

    @abstractmethod
    def env_steps(self, update: int) -> int:
        """Environment steps before an online update has been followed by the next, counted from 0."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Figures of what was collected since the last call, by the name that they are logged under."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint; called before `attach`."""

    @abstractmethod
    def close(self) -> None:
        """Closes the environments."""


class MixedSampler(TransitionSampler):
    """Draws minibatches from a dataset and from what is collected; from the dataset alone until there is something.

    "retain" draws uniformly from all transitions, as if one buffer held both. "balanced" draws every other row of the
    global batch from what is collected (RLPD, arXiv 2302.02948). "empty" leaves the dataset out.

    Args:
        arguments: Arguments of `TransitionSampler`.
        settings: Further ones.

    Attributes:
        experience: What is collected; None before the online phase.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.experience: Experience | None = None

    def _draw(self, numbers: Tensor) -> Any:
        if self.experience is None:
            return super()._draw(numbers)
        windows, mode = self.experience.windows, self.experience.mode
        if mode == "empty":
            if not len(windows):
                raise DatasetError(
                    f"online.mode: expected collected transitions to learn from in mode empty, found none of "
                    f"{self.windows.span.action_chunk} steps; raise online.start_steps"
                )
            return windows.batch(positions(numbers, len(windows)), self.spec.batch)
        if not len(windows):
            return super()._draw(numbers)
        if mode == "balanced":
            collected = (self._stored_rows % 2 == 1).expand_as(numbers)
            places = positions(numbers, len(self.windows)), positions(numbers, len(windows))
        else:
            place = positions(numbers, len(self.windows) + len(windows))
            collected = place >= len(self.windows)
            places = place.clamp(max=len(self.windows) - 1), (place - len(self.windows)).clamp(min=0)
        return _choose(collected.to(self.rows.device), (self.windows, windows), places, self.spec.batch)


def _choose(second: Tensor, windows: tuple[Windows, Windows], places: tuple[Tensor, Tensor], kind: type[Any]) -> Any:
    """Rows of two sources, where ``second`` (K, B) says of which; gathering both needs no wait for the device."""
    first, other = (each.batch(place, kind) for each, place in zip(windows, places, strict=True))
    return kind(
        *(
            torch.where(second.view(*second.shape, *[1] * (ours.ndim - second.ndim)), theirs, ours)
            for ours, theirs in zip(first, other, strict=True)
        )
    )


MODES = get_args(Mode)
