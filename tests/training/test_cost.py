"""Many tokens are told of before they take hours."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch

from tql_lightning.algorithms.tql import TQL
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.training.cost import forward_operations, operations_per_second, warn_of_many_tokens

CPU = torch.device("cpu")
POLICY = partial(FlowPolicy, hidden_dims=(16,), flow_steps=2)


def test_a_thousand_observed_numbers_are_told_of_with_their_cost_and_remedies() -> None:
    model = TQL(1000, 1, critic=partial(TransformerCritic, hidden_dim=32), policy=POLICY)
    with pytest.warns(UserWarning, match=r"1,00\d tokens, .* GFLOP, .* s on this cpu, .* GB of weights") as warned:
        warn_of_many_tokens(model, 16, CPU)
    assert "--model.critic=tql_lightning.nn.critic.MLPCritic" in str(warned[0].message)
    assert "chunked" in str(warned[0].message)


@pytest.mark.parametrize(
    ("size", "critic"), [(40, partial(TransformerCritic, hidden_dim=32)), (1000, partial(MLPCritic, hidden_dims=(8,)))]
)
def test_few_tokens_and_critics_without_attention_are_not_told_of(
    size: int, critic: partial[TransformerCritic]
) -> None:
    model = TQL(size, 1, critic=critic, policy=POLICY, entropy_control=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_many_tokens(model, 16, CPU)


def test_the_estimate_grows_with_rows_and_faster_than_tokens() -> None:
    few, many = (TransformerCritic(size, 1, hidden_dim=32) for size in (400, 800))
    assert forward_operations(few, 32) == 2 * forward_operations(few, 16)
    assert 2 < forward_operations(many, 16) / forward_operations(few, 16) < 5
    assert operations_per_second(CPU) > 1e7
