"""Draws the critic's attention maps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lightning.pytorch import Trainer

from tql_lightning.callbacks.observing import data_of, evaluation_mode, find_critic, fixed_transitions
from tql_lightning.callbacks.periodic import PeriodicObserver
from tql_lightning.loggers.media import save_figure
from tql_lightning.nn.attention_weights import attention_log_weights
from tql_lightning.report.pictures import attention_map_figure
from tql_lightning.run.folder import ATTENTION_MAP, picture_file
from tql_lightning.training.algorithm import Algorithm


class AttentionMap(PeriodicObserver):
    """Draws the attention map of each layer, averaged over heads and a fixed batch from the dataset.

    Rows are queries and sum to 1; the axes are the tokens [VALUE], observation and action. Pictures go to
    ``pictures/attention_map/`` in the run's folder and to the loggers. A critic without attention has none.

    Args:
        every_n_updates: Updates between two pictures, a multiple of the data's ``updates_per_step``. Pictures are also
            drawn before the first and after the last update.
        transitions: Size of the fixed batch.

    Examples:
        >>> AttentionMap(every_n_updates=500).every_n_updates
        500
    """

    needs = ("matplotlib",)

    def __init__(self, every_n_updates: int = 100_000, transitions: int = 64) -> None:
        super().__init__(every_n_updates)
        if transitions < 1:
            raise ValueError(f"AttentionMap.transitions: expected at least 1, found {transitions}")
        self.transitions = transitions

    def observe(self, trainer: Trainer, model: Algorithm) -> None:
        """Draws the maps."""
        critic = find_critic(self, model)
        if critic is None:
            return
        with evaluation_mode(critic):
            pairs = fixed_transitions(data_of(self, trainer), self.transitions, model)
            logarithms = attention_log_weights(critic, *pairs)
        if logarithms:
            maps = [layer.exp().mean(dim=(0, 1)).cpu().numpy() for layer in logarithms]
            draw = partial(attention_map_figure, maps, model.observation_dim, trainer.global_step)
            path = picture_file(Path(trainer.default_root_dir), ATTENTION_MAP, trainer.global_step)
            save_figure(draw, path, trainer.loggers, ATTENTION_MAP, trainer.global_step)
