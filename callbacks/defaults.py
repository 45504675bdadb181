"""The usual callbacks, for use without the command line."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback

from tql_lightning.callbacks.attention_entropy import AttentionEntropyMonitor
from tql_lightning.callbacks.attention_map import AttentionMap
from tql_lightning.callbacks.best_checkpoint import BestCheckpoint
from tql_lightning.callbacks.checkpointing import GracefulInterrupt, LastCheckpoint
from tql_lightning.callbacks.plots import TrainingPlots
from tql_lightning.callbacks.progress import UpdateProgressBar
from tql_lightning.callbacks.q_landscape import QLandscape
from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation
from tql_lightning.callbacks.throughput import Throughput


def default_callbacks(
    folder: Path | str, every_n_updates: int = 10_000, episodes: int = 20, plays: bool = True
) -> list[Callback]:
    """The callbacks of ``conf/tql.yaml``, in their order.

    Args:
        folder: Folder of the run, the trainer's ``default_root_dir``; its loggers are `default_loggers` of the same.
        every_n_updates: Updates between evaluations, pictures and checkpoints.
        episodes: Number of episodes of an evaluation.
        plays: Whether to evaluate at all, which needs the dataset's environment.

    Examples:
        >>> callbacks = default_callbacks("runs/mine", every_n_updates=500)
        >>> [type(callback).__name__ for callback in callbacks][:3]
        ['GracefulInterrupt', 'AttentionEntropyMonitor', 'RolloutEvaluation']
    """
    checkpoints = Path(folder) / "checkpoints"
    return [
        GracefulInterrupt(),  # first: also while others work
        AttentionEntropyMonitor(),
        *([RolloutEvaluation(episodes=episodes, every_n_updates=every_n_updates)] if plays else []),
        AttentionMap(every_n_updates),
        QLandscape(every_n_updates),
        Throughput(),
        UpdateProgressBar(),
        TrainingPlots(),
        LastCheckpoint(str(checkpoints), every_n_updates),
        *([BestCheckpoint(str(checkpoints))] if plays else []),
    ]
