"""Callbacks that observe training and never change it; import them from ``tql_lightning.callbacks``.

They are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tql_lightning.callbacks.attention_entropy import AttentionEntropyMonitor as AttentionEntropyMonitor
    from tql_lightning.callbacks.attention_map import AttentionMap as AttentionMap
    from tql_lightning.callbacks.before_divergence import BeforeDivergence as BeforeDivergence
    from tql_lightning.callbacks.best_checkpoint import BestCheckpoint as BestCheckpoint
    from tql_lightning.callbacks.checkpointing import GracefulInterrupt as GracefulInterrupt
    from tql_lightning.callbacks.checkpointing import LastCheckpoint as LastCheckpoint
    from tql_lightning.callbacks.defaults import default_callbacks as default_callbacks
    from tql_lightning.callbacks.episode_videos import EpisodeVideos as EpisodeVideos
    from tql_lightning.callbacks.periodic import PeriodicObserver as PeriodicObserver
    from tql_lightning.callbacks.plots import TrainingPlots as TrainingPlots
    from tql_lightning.callbacks.progress import UpdateProgressBar as UpdateProgressBar
    from tql_lightning.callbacks.q_landscape import QLandscape as QLandscape
    from tql_lightning.callbacks.rollout_evaluation import RolloutEvaluation as RolloutEvaluation
    from tql_lightning.callbacks.throughput import Throughput as Throughput

_HOME_OF = {  # name -> module
    "AttentionEntropyMonitor": "attention_entropy",
    "AttentionMap": "attention_map",
    "BeforeDivergence": "before_divergence",
    "BestCheckpoint": "best_checkpoint",
    "EpisodeVideos": "episode_videos",
    "GracefulInterrupt": "checkpointing",
    "LastCheckpoint": "checkpointing",
    "PeriodicObserver": "periodic",
    "QLandscape": "q_landscape",
    "RolloutEvaluation": "rollout_evaluation",
    "Throughput": "throughput",
    "TrainingPlots": "plots",
    "UpdateProgressBar": "progress",
    "default_callbacks": "defaults",
}

__all__ = [*sorted(_HOME_OF)]  # noqa: PLE0604  (they are strings)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"tql_lightning.callbacks.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
