"""Draws Q over actions, and measures its slope and roughness."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer

from tql_lightning.callbacks.observing import (
    data_of,
    evaluation_mode,
    find_critic,
    fixed_transitions,
    require_algorithm,
)
from tql_lightning.callbacks.periodic import PeriodicObserver
from tql_lightning.evaluation.landscape import q_around, smoothness, steepest_dimensions
from tql_lightning.evaluation.rollout import episode_noise
from tql_lightning.loggers.media import save_figure
from tql_lightning.report.pictures import q_landscape_figure
from tql_lightning.run.folder import Q_LANDSCAPE, picture_file
from tql_lightning.training.algorithm import Algorithm

COLUMNS = 3  # observations in a picture


class QLandscape(PeriodicObserver):
    """Draws Q over a grid of offsets in two action dimensions, around the dataset's and the policy's actions.

    Logs ``train/q_slope`` and ``train/q_roughness`` over evenly spaced transitions of the dataset (see
    `landscape.smoothness`). Pictures of three of them go to ``pictures/q_landscape/`` in the run's folder and to the
    loggers. With one action dimension Q is drawn as a curve.

    Args:
        every_n_updates: Updates between two pictures, a multiple of the data's ``updates_per_step``. Pictures are also
            drawn before the first and after the last update.
        dimensions: Two action dimensions; null for those in which Q is steepest, chosen anew for every picture.
        transitions: Number of transitions for slope and roughness.
        grid: Number of offsets along each dimension.
        radius: Largest offset; actions lie in [-1, 1].

    Raises:
        ValueError: A setting is out of its range.

    Examples:
        >>> QLandscape(every_n_updates=500, grid=11).every_n_updates
        500
    """

    needs = ("matplotlib",)
    logs = ("train/q_slope", "train/q_roughness")

    def __init__(
        self,
        every_n_updates: int = 100_000,
        dimensions: Sequence[int] | None = None,
        transitions: int = 512,
        grid: int = 31,
        radius: float = 0.5,
    ) -> None:
        super().__init__(every_n_updates)
        for name, value, lowest in (("transitions", transitions, COLUMNS), ("grid", grid, 3)):
            if value < lowest:
                raise ValueError(f"QLandscape.{name}: expected at least {lowest}, found {value}")
        if radius <= 0:
            raise ValueError(f"QLandscape.radius: expected above 0, found {radius}")
        self.dimensions = None if dimensions is None else tuple(dimensions)
        self.transitions = transitions
        self.grid = grid
        self.radius = radius

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Also checks the dimensions."""
        super().setup(trainer, pl_module, stage)
        size, chosen = require_algorithm(self, pl_module).action_dim, self.dimensions
        if chosen is not None and (len(set(chosen)) != 2 or len(chosen) != 2 or not set(chosen) <= set(range(size))):
            raise ValueError(
                f"QLandscape.dimensions: expected two different ones of 0 to {size - 1}, found {list(chosen)}"
            )

    def observe(self, trainer: Trainer, model: Algorithm) -> dict[str, float] | None:
        """Measures and draws."""
        update = trainer.global_step
        critic = find_critic(self, model)
        if critic is None:
            return None
        with evaluation_mode(model), torch.no_grad():
            observations, actions = fixed_transitions(data_of(self, trainer), self.transitions, model)
            slope, roughness = smoothness(critic, observations, actions)
            dimensions = self.dimensions or steepest_dimensions(critic, observations, actions)
            shown = torch.linspace(0, len(actions) - 1, COLUMNS).long()
            actor = model.actor()
            noise = episode_noise(0, 0, range(COLUMNS), actor.noise_shape).to(actions)
            at = observations[shown]
            offsets = torch.linspace(-self.radius, self.radius, self.grid)
            values = torch.stack(
                [q_around(critic, at, around, dimensions, offsets) for around in (actions[shown], actor.act(at, noise))]
            )
        draw = partial(q_landscape_figure, values.cpu().numpy(), offsets.numpy(), dimensions, update, roughness)
        path = picture_file(Path(trainer.default_root_dir), Q_LANDSCAPE, update)
        save_figure(draw, path, trainer.loggers, Q_LANDSCAPE, update)
        return {"train/q_slope": slope, "train/q_roughness": roughness}
