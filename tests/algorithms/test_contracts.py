"""Every algorithm keeps the contract."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import partial

from tql_lightning import algorithms
from tql_lightning.algorithms.tql import TQL
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.testing import AlgorithmContract
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.optimisation import Optimisation


class TestTQL(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> TQL:
        return TQL(
            observation_dim,
            action_dim,
            critic=partial(TransformerCritic, hidden_dim=16, head_dim=8, num_layers=1),
            policy=partial(FlowPolicy, hidden_dims=(32, 32), flow_steps=3),
            bc_coefficient=0.1,
            optimisation=Optimisation(learning_rate=3e-3),
        )


def test_every_algorithm_has_a_contract() -> None:
    modules = [
        importlib.import_module(f"{algorithms.__name__}.{each.name}")
        for each in pkgutil.iter_modules(algorithms.__path__)
    ]
    kinds = {
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Algorithm) and not inspect.isabstract(kind) and kind.__module__ == module.__name__
    }
    tested = {type(contract().make(3, 2)) for contract in AlgorithmContract.__subclasses__()}
    assert TQL in kinds
    assert kinds <= tested
