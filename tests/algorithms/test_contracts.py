"""Every algorithm keeps the contract."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import partial
from typing import Any, ClassVar

import pytest

from tql_lightning import algorithms
from tql_lightning.algorithms.bc import BC
from tql_lightning.algorithms.floq import Floq, ReturnFlow
from tql_lightning.algorithms.ifql import IFQL
from tql_lightning.algorithms.iql import IQL
from tql_lightning.algorithms.q_transformer import QTransformer
from tql_lightning.algorithms.qc import QC
from tql_lightning.algorithms.rebrac import ReBRAC
from tql_lightning.algorithms.tql import TQL
from tql_lightning.nn.autoregressive import AutoregressiveCritic
from tql_lightning.nn.categorical import CategoricalProjection
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.gaussian_policy import GaussianPolicy, SquashedGaussianPolicy
from tql_lightning.nn.layer_temperature import LayerTemperature
from tql_lightning.nn.perceiver import PerceiverCritic
from tql_lightning.nn.policy import BehaviourFlow, FlowPolicy
from tql_lightning.nn.value_network import ValueNetwork
from tql_lightning.nn.velocity_critic import VelocityCritic
from tql_lightning.testing import AlgorithmContract
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.optimisation import Optimisation
from tql_lightning.training.problem import Problem


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


SIZES: dict[str, Any] = {"hidden_dims": (32, 32)}
OPPONENT: dict[str, Any] = {
    "critic": partial(MLPCritic, **SIZES),
    "tau": 0.05,
    "optimisation": Optimisation(learning_rate=3e-3),
}
FLOW = partial(BehaviourFlow, **SIZES, flow_steps=3, num_samples=8)
VALUE = partial(ValueNetwork, **SIZES)


@pytest.mark.slow
class TestBC(AlgorithmContract):
    clones = True

    def make(self, observation_dim: int, action_dim: int) -> BC:
        return BC(observation_dim, action_dim, policy=FLOW)


@pytest.mark.slow
class TestGaussianBC(AlgorithmContract):
    clones = True

    def make(self, observation_dim: int, action_dim: int) -> BC:
        return BC(observation_dim, action_dim, policy=partial(GaussianPolicy, **SIZES, learned_std=True))


@pytest.mark.slow
class TestIQL(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> IQL:
        policy = partial(GaussianPolicy, **SIZES)
        return IQL(observation_dim, action_dim, value=VALUE, policy=policy, **OPPONENT)


@pytest.mark.slow
class TestIQLByDDPG(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> IQL:
        policy = partial(GaussianPolicy, **SIZES, learned_std=True)
        return IQL(observation_dim, action_dim, value=VALUE, policy=policy, actor_loss="ddpgbc", alpha=0.01, **OPPONENT)


@pytest.mark.slow
class TestIFQL(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> IFQL:
        return IFQL(observation_dim, action_dim, value=VALUE, policy=FLOW, **OPPONENT)


@pytest.mark.slow
class TestReBRAC(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> ReBRAC:
        policy = partial(SquashedGaussianPolicy, **SIZES)
        return ReBRAC(observation_dim, action_dim, policy=policy, actor_bc_coefficient=0.01, **OPPONENT)


@pytest.mark.slow
class TestQC(AlgorithmContract):
    data: ClassVar[dict[str, Any]] = {"action_chunk": 2}

    def make(self, observation_dim: int, action_dim: int) -> QC:
        # Enough steps and candidates: few steps of a flow give actions that lie close together.
        policy = partial(BehaviourFlow, hidden_dims=(64, 64), flow_steps=8, num_samples=32)
        return QC(observation_dim, action_dim, policy=policy, problem=Problem(2), **OPPONENT)


@pytest.mark.slow
class TestQCFQL(AlgorithmContract):
    data: ClassVar[dict[str, Any]] = {"action_chunk": 2}

    def make(self, observation_dim: int, action_dim: int) -> QC:
        policy = partial(FlowPolicy, **SIZES, flow_steps=3)
        return QC(
            observation_dim,
            action_dim,
            policy=policy,
            problem=Problem(2),
            extraction="fql",
            bc_coefficient=0.1,
            **OPPONENT,
        )


ONE_STEP = partial(FlowPolicy, **SIZES, flow_steps=3, layer_norm=False)
SCALED: dict[str, Any] = {
    "problem": Problem(reward_range=(0.0, 1.0)),
    "discount": 0.5,
}  # of methods that scale


@pytest.mark.slow
class TestFloq(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> Floq:
        return Floq(
            observation_dim,
            action_dim,
            velocity_critic=partial(VelocityCritic, **SIZES, flow_steps=2),
            policy=ONE_STEP,
            bc_coefficient=0.1,
            return_flow=ReturnFlow(noise_samples=2),
            **(OPPONENT | SCALED),
        )


@pytest.mark.slow
class TestPAC(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> TQL:
        return TQL(
            observation_dim,
            action_dim,
            critic=partial(PerceiverCritic, hidden_dim=16, head_dim=8, num_latents=3, num_layers=1),
            policy=ONE_STEP,
            entropy_control=None,
            value_loss=partial(CategoricalProjection, num_atoms=21),
            bc_coefficient=0.1,
            optimisation=Optimisation(learning_rate=3e-3),
            **SCALED,
        )


@pytest.mark.slow
class TestQTransformer(AlgorithmContract):
    def make(self, observation_dim: int, action_dim: int) -> QTransformer:
        return QTransformer(
            observation_dim,
            action_dim,
            critic=partial(AutoregressiveCritic, num_bins=4, hidden_dim=16, head_dim=8, num_layers=1),
            entropy_control=LayerTemperature,
            tau=0.05,
            optimisation=Optimisation(learning_rate=5e-3, gradient_clip_norm=1.0),
            **SCALED,
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
