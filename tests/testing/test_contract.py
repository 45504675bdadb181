"""The contract finds what an algorithm breaks, and says what it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tql_lightning.algorithms.tql import TQL
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.testing import AlgorithmContract
from tql_lightning.training.optimisation import Optimisation, ParameterGroup
from tql_lightning.training.update import Losses

CRITIC = partial(MLPCritic, hidden_dims=(8,))
POLICY = partial(FlowPolicy, hidden_dims=(8,), flow_steps=1)


class Broken(TQL):
    """A small FQL that subclasses break in one place."""

    def __init__(self, observation_dim: int, action_dim: int, **settings: Any) -> None:
        super().__init__(observation_dim, action_dim, **settings)
        self.scale = nn.Parameter(torch.ones(()))
        self.updates = 0

    def parameter_groups(self) -> list[ParameterGroup]:
        return [*super().parameter_groups(), ParameterGroup("scale", ScaleHolder(self.scale))]

    def losses(self, *arguments: Any, **options: Any) -> Losses:
        found = super().losses(*arguments, **options)
        return found._replace(total=found.total + self.factor() * self.scale.square())

    def factor(self) -> Tensor | float:
        """What the loss of ``scale`` is multiplied by."""
        return 1.0


class ScaleHolder(nn.Module):
    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__()
        self.scale = scale


class Detached(Broken):
    def factor(self) -> float:
        return 0.0


class Drawing(Broken):
    def factor(self) -> Tensor:
        return torch.rand(())


class Counting(Broken):
    def factor(self) -> float:
        self.updates += 1
        return float(self.updates)


class Branching(Broken):
    def factor(self) -> float:
        return 1.0 if self.scale.item() > 0.0 else 2.0


class Unsaved(Broken):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        del checkpoint["hyper_parameters"]["observation_dim"]


class Still(Broken):
    def losses(self, *arguments: Any, **options: Any) -> Losses:
        found = super().losses(*arguments, **options)
        return found._replace(total=0.0 * found.total)


class PerProcess(Broken):
    def losses(self, batch: Any, noise: Any, inputs: Any, *arguments: Any, **options: Any) -> Losses:
        found = super().losses(batch, noise, inputs, *arguments, **options)
        return found._replace(total=found.total / batch.rewards.mean().detach())


class Contract(AlgorithmContract):
    kind: type[Broken] = Broken
    learning_updates = 5

    def make(self, observation_dim: int, action_dim: int) -> TQL:
        settings: dict[str, Any] = {"critic": CRITIC, "policy": POLICY, "entropy_control": None}
        return self.kind(observation_dim, action_dim, optimisation=Optimisation(learning_rate=1e-3), **settings)


class PerProcessContract(Contract):
    kind = PerProcess


FAULTS: dict[type[Broken], tuple[str, str]] = {
    Detached: ("test_every_trainable_parameter_is_in_one_group_and_moves", "no loss reaches scale"),
    Drawing: ("test_the_losses_are_a_function_of_their_inputs", "losses draw random numbers; declare them in `Noise`"),
    Counting: (
        "test_a_run_that_stops_and_continues_is_the_whole_run_bit_for_bit",
        "a continued run differs in",
    ),
    Branching: ("test_the_losses_compile_into_one_graph", "item"),
    Unsaved: ("test_a_checkpoint_loads_without_arguments_or_pickle", "does not fit its model .*observation_dim"),
    Still: ("test_it_beats_behaviour_cloning", "mean reward 0.* after 5 updates; cloning has 0.5"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_found_and_named(kind: type[Broken], tmp_path: Path) -> None:
    name, message = FAULTS[kind]
    contract = Contract()
    contract.kind = kind
    test = getattr(contract, name)
    with pytest.raises(Exception, match=message):
        test(**({"tmp_path": tmp_path} if "tmp_path" in test.__annotations__ else {}))


def test_an_observer_that_leaves_a_trace_is_found(tmp_path: Path) -> None:
    contract = Contract()
    contract.kind = Counting  # each look at the losses counts
    with pytest.raises(AssertionError, match=r"observers change .*scale"):
        contract.test_observers_do_not_change_training(tmp_path)


@pytest.mark.slow
def test_a_loss_that_each_process_scales_for_itself_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="two processes differ from one in"):
        PerProcessContract().test_two_processes_train_as_one(tmp_path)


def test_parameters_without_gradient_may_be_listed_and_others_may_not(tmp_path: Path) -> None:
    class Listed(Contract):
        kind = Detached
        without_gradient = frozenset({"scale"})

    Listed().test_every_trainable_parameter_is_in_one_group_and_moves(tmp_path)
    Listed.kind = Broken
    with pytest.raises(AssertionError, match=r"without_gradient: .*scale.* has a gradient"):
        Listed().test_every_trainable_parameter_is_in_one_group_and_moves(tmp_path)
