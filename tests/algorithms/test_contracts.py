"""Every algorithm keeps the contract."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import partial
from typing import Any, ClassVar

from tql_lightning import algorithms
from tql_lightning.algorithms.bc import BC
from tql_lightning.algorithms.floq import Floq
from tql_lightning.algorithms.ifql import IFQL
from tql_lightning.algorithms.iql import IQL
from tql_lightning.algorithms.q_transformer import QTransformer
from tql_lightning.algorithms.qc import QC
from tql_lightning.algorithms.rebrac import ReBRAC
from tql_lightning.algorithms.tql import TQL
from tql_lightning.nn.autoregressive import AutoregressiveCritic
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.gaussian_policy import GaussianPolicy, SquashedGaussianPolicy
from tql_lightning.nn.policy import BehaviourFlow, FlowPolicy
from tql_lightning.nn.value_network import ValueNetwork
from tql_lightning.nn.velocity_critic import VelocityCritic
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


SMALL: dict[str, Any] = {"hidden_dims": (32, 32)}
CRITIC = partial(MLPCritic, **SMALL)
FAST = Optimisation(learning_rate=3e-3)
REWARDS: dict[str, Any] = {"reward_range": (0.0, 1.0), "final_reward_range": (0.0, 1.0)}


class TestBC(AlgorithmContract):
    clones = True

    def make(self, observation_dim: int, action_dim: int) -> BC:
        policy = partial(BehaviourFlow, **SMALL, flow_steps=3)
        return BC(observation_dim, action_dim, policy=policy, optimisation=FAST)


class TestIQL(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> IQL:
        return IQL(
            observation_dim,
            action_dim,
            critic=CRITIC,
            value=partial(ValueNetwork, **SMALL),
            policy=partial(GaussianPolicy, **SMALL),
            optimisation=FAST,
        )


class TestIFQL(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> IFQL:
        return IFQL(
            observation_dim,
            action_dim,
            critic=CRITIC,
            value=partial(ValueNetwork, **SMALL),
            policy=partial(BehaviourFlow, **SMALL, flow_steps=3, num_samples=8),
            optimisation=FAST,
        )


class TestReBRAC(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> ReBRAC:
        policy = partial(SquashedGaussianPolicy, **SMALL)
        return ReBRAC(observation_dim, action_dim, critic=CRITIC, policy=policy, optimisation=FAST)


class TestQC(AlgorithmContract):
    data: ClassVar[dict[str, Any]] = {"action_chunk": 2}
    learning_updates = 600

    def make(self, observation_dim: int, action_dim: int) -> QC:
        policy = partial(BehaviourFlow, **SMALL, flow_steps=3, num_samples=32)
        return QC(observation_dim, action_dim, critic=CRITIC, policy=policy, action_chunk=2, optimisation=FAST)


class TestFloq(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> Floq:
        return Floq(
            observation_dim,
            action_dim,
            velocity_critic=partial(VelocityCritic, **SMALL, flow_steps=3),
            critic=CRITIC,
            policy=partial(FlowPolicy, **SMALL, flow_steps=3),
            noise_samples=2,
            bc_coefficient=0.1,
            **REWARDS,
            optimisation=FAST,
        )


class TestQTransformer(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> QTransformer:
        return QTransformer(
            observation_dim,
            action_dim,
            critic=partial(AutoregressiveCritic, hidden_dim=32, num_bins=8, num_layers=1),
            discount=0.5,  # values are scaled by 1 - discount, and 0.01 of a reward takes long to learn
            **REWARDS,
            optimisation=FAST,
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
