"""Transformer Q-Learning (TQL, arXiv 2602.01439) on PyTorch Lightning.

The names below are loaded when first used, so that importing the package stays cheap.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tql_lightning import callbacks as callbacks
    from tql_lightning import loggers as loggers
    from tql_lightning.algorithms.loading import load_checkpoint as load_checkpoint
    from tql_lightning.algorithms.tql import TQL as TQL
    from tql_lightning.batch import Batch as Batch
    from tql_lightning.batch import Draw as Draw
    from tql_lightning.callbacks.defaults import default_callbacks as default_callbacks
    from tql_lightning.data.datamodule import OfflineDataModule as OfflineDataModule
    from tql_lightning.data.named import load_dataset as load_dataset
    from tql_lightning.data.transitions import DatasetError as DatasetError
    from tql_lightning.data.transitions import TransitionDataset as TransitionDataset
    from tql_lightning.evaluation.checkpoint import evaluate_checkpoint as evaluate_checkpoint
    from tql_lightning.evaluation.rollout import RolloutResult as RolloutResult
    from tql_lightning.export.policy import Policy as Policy
    from tql_lightning.loggers import default_loggers as default_loggers
    from tql_lightning.nn.critic import Critic as Critic
    from tql_lightning.nn.critic import CriticOutput as CriticOutput
    from tql_lightning.nn.critic import MLPCritic as MLPCritic
    from tql_lightning.nn.critic import TransformerCritic as TransformerCritic
    from tql_lightning.nn.policy import Actor as Actor
    from tql_lightning.nn.policy import FlowPolicy as FlowPolicy
    from tql_lightning.nn.temperature import AttentionTemperature as AttentionTemperature
    from tql_lightning.report.page import write_report as write_report
    from tql_lightning.report.plots import plot_run as plot_run
    from tql_lightning.training.algorithm import Algorithm as Algorithm
    from tql_lightning.training.execution import Execution as Execution
    from tql_lightning.training.optimisation import Optimisation as Optimisation
    from tql_lightning.training.optimisation import ParameterGroup as ParameterGroup
    from tql_lightning.training.problem import Problem as Problem
    from tql_lightning.training.update import Losses as Losses

if sys.platform == "win32":  # without fork, poll and the resource module
    raise ImportError("tql_lightning: expected Linux or macOS, found Windows; use the Windows Subsystem for Linux")

_HOMES = {  # module -> names in it
    "algorithms.loading": ("load_checkpoint",),
    "algorithms.tql": ("TQL",),
    "batch": ("Batch", "Draw"),
    "callbacks": (),
    "callbacks.defaults": ("default_callbacks",),
    "data.datamodule": ("OfflineDataModule",),
    "data.named": ("load_dataset",),
    "data.transitions": ("DatasetError", "TransitionDataset"),
    "evaluation.checkpoint": ("evaluate_checkpoint",),
    "evaluation.rollout": ("RolloutResult",),
    "export.policy": ("Policy",),
    "loggers": ("default_loggers",),
    "nn.critic": ("Critic", "CriticOutput", "MLPCritic", "TransformerCritic"),
    "nn.policy": ("Actor", "FlowPolicy"),
    "nn.temperature": ("AttentionTemperature",),
    "report.page": ("write_report",),
    "report.plots": ("plot_run",),
    "training.algorithm": ("Algorithm",),
    "training.execution": ("Execution",),
    "training.optimisation": ("Optimisation", "ParameterGroup"),
    "training.problem": ("Problem",),
    "training.update": ("Losses",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted({*_HOME_OF, "callbacks", "loggers"})]  # noqa: PLE0604  (they are strings)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
