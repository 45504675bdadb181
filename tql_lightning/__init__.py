"""Transformer Q-Learning (TQL, arXiv 2602.01439) on PyTorch Lightning.

The names below are loaded when first used, so that importing the package stays cheap.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tql_lightning.algorithms.tql import TQL
    from tql_lightning.batch import Batch, Draw
    from tql_lightning.data.datamodule import OfflineDataModule
    from tql_lightning.data.named import load_dataset
    from tql_lightning.data.transitions import DatasetError, TransitionDataset
    from tql_lightning.evaluation.rollout import RolloutResult
    from tql_lightning.export.policy import Policy
    from tql_lightning.nn.critic import Critic, CriticOutput, MLPCritic, TransformerCritic
    from tql_lightning.nn.policy import Actor, FlowPolicy
    from tql_lightning.nn.temperature import AttentionTemperature
    from tql_lightning.training.algorithm import Algorithm
    from tql_lightning.training.execution import Execution
    from tql_lightning.training.optimisation import Optimisation, ParameterGroup
    from tql_lightning.training.update import Losses

if sys.platform == "win32":  # without fork, poll and the resource module
    raise ImportError("tql_lightning: expected Linux or macOS, found Windows; use the Windows Subsystem for Linux")

_HOMES = {
    "batch": ("Batch", "Draw"),
    "data.datamodule": ("OfflineDataModule",),
    "data.named": ("load_dataset",),
    "data.transitions": ("DatasetError", "TransitionDataset"),
    "nn.critic": ("Critic", "CriticOutput", "MLPCritic", "TransformerCritic"),
    "nn.policy": ("Actor", "FlowPolicy"),
    "nn.temperature": ("AttentionTemperature",),
    "export.policy": ("Policy",),
    "evaluation.rollout": ("RolloutResult",),
    "algorithms.tql": ("TQL",),
    "training.algorithm": ("Algorithm",),
    "training.execution": ("Execution",),
    "training.optimisation": ("Optimisation", "ParameterGroup"),
    "training.update": ("Losses",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "TQL",
    "Actor",
    "Algorithm",
    "AttentionTemperature",
    "Batch",
    "Critic",
    "CriticOutput",
    "DatasetError",
    "Draw",
    "Execution",
    "FlowPolicy",
    "Losses",
    "MLPCritic",
    "OfflineDataModule",
    "Optimisation",
    "ParameterGroup",
    "Policy",
    "RolloutResult",
    "TransformerCritic",
    "TransitionDataset",
    "load_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
