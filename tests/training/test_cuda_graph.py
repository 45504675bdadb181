"""Updates that are recorded and replayed, with a recorder that runs on the CPU; CUDA graphs themselves need a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer import setup
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tests.algorithms.test_tql import KeepOutputs
from tests.toy import fit, toy_chunk, toy_dataset, toy_model
from tql_lightning.algorithms.tql import TQL
from tql_lightning.batch import at_update
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.data.windows import Span
from tql_lightning.nn.critic import Critic, MLPCritic, TransformerCritic
from tql_lightning.nn.rational import RationalFeedForward
from tql_lightning.nn.sigma_reparam import SigmaReparam
from tql_lightning.nn.structured import LowRankLinear, SelfGuide, guided_layers
from tql_lightning.nn.structured_feedforward import StructuredFeedForward
from tql_lightning.nn.temperature import AttentionTemperature, SingleTemperature, TargetSchedule
from tql_lightning.nn.transformer import TransformerBlock
from tql_lightning.nn.value_loss import HLGauss
from tql_lightning.training import optimisation, trainer_checks, update
from tql_lightning.training.cuda_graph import ReplayedAdamW, unchanged
from tql_lightning.training.update import Losses, UpdateRunner


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

    monkeypatch.setattr(trainer_checks, "can_record", lambda _: True)
    monkeypatch.setattr(update, "new_recorder", make)
    # Replayed or not, learning rates are rounded to float32.
    monkeypatch.setattr(optimisation, "learning_rate", lambda value, *_: torch.tensor(value))
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
        run(tmp_path, cuda_graphs, updates=10, callbacks=[keep], log_every_n_steps=2)
        outputs[cuda_graphs] = keep.kept
    assert any(plain["metrics"] for plain in outputs[False])
    for plain, replayed in zip(outputs[False], outputs[True], strict=True):
        assert plain["metrics"].keys() == replayed["metrics"].keys()
        for name, value in plain["metrics"].items():
            assert torch.equal(value, replayed["metrics"][name]), name
        assert torch.equal(plain["loss"], replayed["loss"])
        assert plain["diagnostics"].keys() == {"attention_entropy", "temperature", "target_entropy"}
        for name, value in plain["diagnostics"].items():
            assert torch.equal(value, replayed["diagnostics"][name]), name


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


def accumulators(trained: TQL) -> list[Any]:
    """The nodes of autograd that add to the parameters' gradients; those there are, or new ones."""
    parameters = (parameter for parameter in trained.parameters() if parameter.requires_grad)
    return [parameter.expand_as(parameter).grad_fn.next_functions[0][0] for parameter in parameters]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nothing_of_an_updates_graph_of_autograd_outlives_it(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """A node that lives on has the stream of its making, which is another than the recording's, and breaks it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    critic = partial(TransformerCritic, hidden_dim=16, head_dim=8, weight_parametrisation=SigmaReparam)
    trained = toy_model(critic=critic, gradient_clip_norm=1.0, normalize_q_loss=True, compile=compiled)
    monkeypatch.setattr(trained, "manual_backward", torch.autograd.backward)  # Lightning's without a trainer
    runner = UpdateRunner(trained)
    optimizer = trained.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    batch, noise = (at_update(part, 0) for part in toy_chunk(trained))
    losses = runner.losses

    def marked(*arguments: Any) -> Losses:
        outputs = losses(*arguments)
        for node in accumulators(trained):
            node.metadata["of the update"] = True
        assert all(node.metadata for node in accumulators(trained))
        return outputs

    monkeypatch.setattr(runner, "losses", marked)
    gc.collect()
    gc.disable()  # what only the collector finds is there when the recording begins
    try:
        runner.step(batch, noise, trained.current_inputs(), optimizer, with_metrics=True)
        assert not any(node.metadata for node in accumulators(trained))
    finally:
        gc.enable()


class OnTheDevice(TorchDispatchMode):
    """Makes an error of whatever would read from a GPU, or copy to it."""

    waits = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in self.waits, f"an update calls {func}"
        masks = [x for x in (args[1] if func is torch.ops.aten.index.Tensor else ()) if x is not None]
        assert all(mask.dtype != torch.bool for mask in masks), "an update indexes by a mask"
        return func(*args, **(kwargs or {}))


def with_feedforward(feedforward: Callable[[int, int, float], torch.nn.Module]) -> Callable[[int, int], Critic]:
    block = partial(TransformerBlock, feedforward=feedforward)
    return partial(TransformerCritic, hidden_dim=16, head_dim=8, block=block)


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"entropy_control": partial(AttentionTemperature, schedule=TargetSchedule(0.1, 10))},
    "sigma-Reparam, HL-Gauss": {
        "critic": partial(TransformerCritic, hidden_dim=16, head_dim=8, weight_parametrisation=SigmaReparam),
        "value_loss": HLGauss,
        "reward_range": (-3.0, 3.0),
        "entropy_control": SingleTemperature,
    },
    "MLP": {"critic": partial(MLPCritic, hidden_dims=(8,)), "normalize_q_loss": True},
    "rational": {"critic": with_feedforward(RationalFeedForward)},
    "guided low rank": {
        "critic": with_feedforward(
            partial(StructuredFeedForward, dense_blocks=0, linear=partial(LowRankLinear, guide=SelfGuide(5)))
        )
    },
}


@pytest.mark.usefixtures("recorders")
def test_guides_of_replayed_layers_follow_their_schedule(tmp_path: Path) -> None:
    plain, replayed = (toy_model(cuda_graphs=graphs, **VARIANTS["guided low rank"]) for graphs in (False, True))
    fit(tmp_path, plain, updates=8)
    fit(tmp_path, replayed, updates=8)
    assert {int(layer.updates) for layer in guided_layers(replayed)} == {8}
    assert_same(replayed, plain)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.usefixtures("recorders")
def test_an_update_neither_reads_from_its_device_nor_copies_to_it(
    monkeypatch: pytest.MonkeyPatch, variant: str, autocast: bool
) -> None:
    """A CPU's stand-in for what a recording refuses; a tensor made without a device would be on another."""
    trained = toy_model(gradient_clip_norm=1.0, cuda_graphs=True, **VARIANTS[variant])
    monkeypatch.setattr(trained, "manual_backward", torch.autograd.backward)  # Lightning's without a trainer
    runner = UpdateRunner(trained)
    optimizer = trained.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    batch, noise = (at_update(part, 0) for part in toy_chunk(trained))
    inputs = trained.current_inputs()
    for _ in range(2):  # the first makes the optimizer's state
        with torch.device("meta"), OnTheDevice(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = runner.step(batch, noise, inputs, optimizer, with_metrics=True)
    assert {tensor.device.type for tensor in (losses.total, *losses.metrics.values())} == {"cpu"}


@pytest.mark.parametrize("span", [Span(), Span(n_step=2, action_chunk=2)])
def test_minibatches_are_drawn_without_reading_from_their_device_or_copying_to_it(span: Span) -> None:
    sampler = TransitionSampler(toy_dataset(), 16, 0, span=span, storage="trainer", spec=toy_model().update_spec)
    with torch.device("meta"), OnTheDevice():
        batches, noises = sampler.chunk(0, 3)
    assert {tensor.device.type for tensor in (*batches, *noises)} == {"cpu"}


def test_beside_a_gpu_a_training_on_the_cpu_passes_without_lightnings_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors in tests, and this one would come of nearly every one of them."""
    monkeypatch.setattr(setup.CUDAAccelerator, "is_available", lambda: True)
    Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)


def test_cuda_graphs_are_refused_on_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model\.execution\.cuda_graphs: expected one process on a CUDA device .* found 1 on cpu"
    ):
        run(tmp_path, True, updates=1)


@pytest.mark.usefixtures("recorders")
def test_the_schedule_multiplies_numbers_and_writes_each_learning_rate_in_one_launch() -> None:
    configured: Any = model(cuda_graphs=True).configure_optimizers()
    assert all(type(peak) is float for peak in configured["lr_scheduler"]["scheduler"].base_lrs)
    assert all(isinstance(group["lr"], Tensor) for group in configured["optimizer"].param_groups)


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
