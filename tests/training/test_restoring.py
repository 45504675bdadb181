"""An optimizer takes over only a state that fits its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tql_lightning.training.restoring import RestorableSchedule, check_restored_states

Change = Callable[[dict[str, Any]], object]


def stepped(**settings: Any) -> torch.optim.AdamW:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), **settings)
    network(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    check_restored_states([optimizer])
    return optimizer


FORGED: dict[str, tuple[Change, str]] = {
    "fewer moments": (lambda state: state.update(exp_avg=torch.zeros(5)), r"exp_avg: expected .* found \(5,\)"),
    "one moment": (lambda state: state.update(exp_avg=torch.zeros(1)), r"found \(1,\)"),
    "one moment repeated": (lambda state: state.update(exp_avg_sq=torch.zeros(1).expand(2, 3)), "exp_avg_sq: expected"),
    "text": (lambda state: state.update(exp_avg="x"), "found str"),
    "no moments": (lambda state: state.pop("exp_avg"), "expected step, exp_avg, exp_avg_sq"),
    "many steps": (lambda state: state.update(step=torch.zeros(4)), "step: expected a number"),
    "a step of text": (lambda state: state.update(step="x"), "step: expected a number"),
}


@pytest.mark.parametrize(("change", "message"), FORGED.values(), ids=FORGED)
def test_a_state_that_does_not_fit_its_parameters_is_refused(change: Change, message: str) -> None:
    optimizer = stepped(fused=True)
    whole = optimizer.state_dict()
    forged = {"state": {key: dict(each) for key, each in whole["state"].items()}, "param_groups": whole["param_groups"]}
    change(forged["state"][0])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(forged)


def test_a_schedule_takes_its_counts_and_no_other_attribute() -> None:
    schedule = RestorableSchedule(stepped(lr=0.5), lambda update: 0.5**update)
    state = {**schedule.state_dict(), "last_epoch": 3, "_step_count": 4, "base_lrs": [], "step": 5, "optimizer": None}
    schedule.load_state_dict(state)
    schedule.step()
    assert (schedule.last_epoch, schedule._step_count, schedule.get_last_lr()) == (4, 5, [0.5 * 0.5**4])
    with pytest.raises(KeyError):
        schedule.load_state_dict({})


def test_a_whole_state_is_taken_over_with_numbers_and_without_switches() -> None:
    before, after = stepped(lr=0.5, betas=(0.5, 0.9)), stepped(lr=0.1)
    state = before.state_dict()
    state["param_groups"][0] |= {"fused": True, "capturable": True, "unknown": "x", "eps": "x"}
    after.load_state_dict(state)
    group = after.param_groups[0]
    assert (group["lr"], group["betas"], group["fused"], group["capturable"]) == (0.5, (0.9, 0.999), None, False)
    assert "unknown" not in group
    assert group["eps"] == 1e-8
    for own, other in zip(after.state.values(), before.state.values(), strict=True):
        assert torch.equal(own["exp_avg"], other["exp_avg"])
