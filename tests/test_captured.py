"""Updates that are recorded and replayed, with a recorder that runs on the CPU; CUDA graphs themselves need a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.test_tql import KeepOutputs
from tests.toy import fit, toy_model
from tql_lightning import update_step
from tql_lightning.captured import ReplayedAdamW, unchanged
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.temperature import AttentionTemperature, TargetSchedule
from tql_lightning.tql import TQL


class Rerun:
    """Runs the work at every replay, and as a CUDA graph gives its outputs in the same memory each time."""

    def __init__(self) -> None:
        self.outputs: Any = None
        self.recordings = 0

    def warm_up(self, work: Callable[[], object]) -> None:
        for _ in range(2):
            work()

    def record(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.recordings += 1

    def replay(self) -> Any:
        outputs = self.work()
        if self.outputs is None:
            self.outputs = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, outputs)
        tree_map(lambda static, new: static.copy_(new) if isinstance(static, Tensor) else None, self.outputs, outputs)
        return self.outputs


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Rerun]:
    """Lets models record on the CPU; the recorders that were made."""
    made: list[Rerun] = []

    def make(_: torch.device) -> Rerun:
        made.append(Rerun())
        return made[-1]

    monkeypatch.setattr(update_step, "can_record", lambda _: True)
    monkeypatch.setattr(update_step, "new_recorder", make)
    # Replayed or not, learning rates are rounded to float32.
    monkeypatch.setattr(TQL, "learning_rate", lambda _, value: torch.tensor(value))
    return made


def model(cuda_graphs: bool, dropout: float = 0.0) -> TQL:
    control = partial(AttentionTemperature, schedule=TargetSchedule(0.1, 10))
    critic = partial(TransformerCritic, hidden_dim=16, head_dim=8, dropout=dropout)
    return toy_model(entropy_control=control, critic=critic, gradient_clip_norm=1.0, cuda_graphs=cuda_graphs)


def parameters(trained: TQL) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trained.state_dict().items()}


def run(folder: Path, cuda_graphs: bool, updates: int, dropout: float = 0.0, **settings: Any) -> tuple[TQL, Trainer]:
    trained = model(cuda_graphs, dropout)
    return trained, fit(folder, trained, updates, **settings)


def assert_same(one: TQL, other: TQL) -> None:
    ours, theirs = parameters(one), parameters(other)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_replayed_training_is_the_training_itself(tmp_path: Path, recorders: list[Rerun]) -> None:
    plain, _ = run(tmp_path, False, updates=12, dropout=0.1)
    assert recorders == []
    replayed, trainer = run(tmp_path, True, updates=12, dropout=0.1)
    assert_same(replayed, plain)
    assert trainer.global_step == 12
    assert [recorder.recordings for recorder in recorders] == [1]


@pytest.mark.usefixtures("recorders")
def test_a_replayed_run_is_continued_by_a_replayed_and_by_a_plain_one(tmp_path: Path) -> None:
    whole, _ = run(tmp_path, True, updates=12)
    _, trainer = run(tmp_path, True, updates=7)
    trainer.save_checkpoint(tmp_path / "stop.ckpt")
    for cuda_graphs in (True, False):
        rest, trainer = run(tmp_path, cuda_graphs, updates=12, ckpt_path=tmp_path / "stop.ckpt")
        assert trainer.global_step == 12
        assert_same(rest, whole)


@pytest.mark.usefixtures("recorders")
def test_what_callbacks_are_given_outlives_the_next_replay(tmp_path: Path) -> None:
    outputs = {}
    for cuda_graphs in (False, True):
        keep = KeepOutputs()
        run(tmp_path, cuda_graphs, updates=10, callbacks=[keep])
        outputs[cuda_graphs] = keep.kept
    for plain, replayed in zip(outputs[False], outputs[True], strict=True):
        assert plain["metrics"].keys() == replayed["metrics"].keys()
        for name, value in plain["metrics"].items():
            assert torch.equal(value, replayed["metrics"][name]), name
        for name in ("loss", "attention_entropy", "temperature", "target_entropy"):
            assert torch.equal(plain[name], replayed[name]), name


class Addresses(Callback):
    """Where everything lies that a recorded update reads or changes, after each chunk."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        optimizer = trainer.optimizers[0]
        tensors = [*pl_module.parameters(), *pl_module.buffers(), *(group["lr"] for group in optimizer.param_groups)]
        tensors += [tensor for state in optimizer.state.values() for tensor in state.values()]
        self.seen.append([tensor.data_ptr() for tensor in tensors])


@pytest.mark.usefixtures("recorders")
def test_what_a_graph_finds_by_its_address_stays_there(tmp_path: Path) -> None:
    """Schedule, optimizer, target critic and validation write into the tensors that were recorded."""
    whole, stopped = Addresses(), Addresses()
    _, trainer = run(tmp_path, True, updates=7, callbacks=[stopped], limit_val_batches=1, val_check_interval=1)
    trainer.save_checkpoint(tmp_path / "stop.ckpt")
    run(tmp_path, True, updates=20, callbacks=[whole], ckpt_path=tmp_path / "stop.ckpt")
    for addresses in (stopped.seen, whole.seen):
        assert len(addresses) > 1
        assert all(later == addresses[0] for later in addresses)


def test_cuda_graphs_are_refused_on_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model\.cuda_graphs: expected one process on a CUDA device .* found 1 on cpu"
    ):
        run(tmp_path, True, updates=1)


@pytest.mark.parametrize("stepped", [False, True])
def test_warming_up_leaves_no_trace(stepped: bool) -> None:
    results = []
    for warmed_up in (True, False):
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout())
        optimizer = ReplayedAdamW(layer.parameters())
        if stepped:
            train(layer, optimizer)
        if warmed_up:
            with unchanged(layer, optimizer):
                train(layer, optimizer)
        train(layer, optimizer)
        results.append(list(layer.state_dict().values()))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def train(layer: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Two steps."""
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.linspace(-1.0, 1.0, 12).view(4, 3)).square().sum().backward()
        optimizer.step()
