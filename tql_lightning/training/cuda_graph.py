"""A gradient step recorded once as a CUDA graph and replayed.

Loss, backward pass, clipping, AdamW and the target critic's step are one launch, so that small critics are not held up
by Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tql_lightning.system.private_api import copy_into

WARM_UP_STEPS = 3  # torch's own number: libraries set themselves up, and the optimizer makes its state


class Recorder(Protocol):
    """What records work on a device."""

    def warm_up(self, work: Callable[[], object]) -> None:
        """Runs the work apart from what else the device does."""

    def record(self, work: Callable[[], Any]) -> None:
        """Records the work, which need not run."""

    def replay(self) -> Any:
        """Runs what was recorded; returns what it gave, in memory that the next replay writes over."""


class CudaRecorder:
    """Records a CUDA graph, on the current device and on a stream of its own, as recording demands."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        # torch's own stream for recordings stays on the device of the process's first.
        self.stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.outputs: Any = None

    def warm_up(self, work: Callable[[], object]) -> None:
        """See `Recorder`."""
        before = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(before)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP_STEPS):
                work()
        before.wait_stream(self.stream)

    def record(self, work: Callable[[], Any]) -> None:
        """See `Recorder`."""
        # What other threads do, such as one that pins memory, is none of the recording.
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            self.outputs = work()

    def replay(self) -> Any:
        """See `Recorder`."""
        self.graph.replay()
        return self.outputs


class GraphedStep:
    """A gradient step, recorded at its first call and replayed at every call.

    Args:
        step: a gradient step; a function of tensors of fixed shapes, parameters and the optimizer's state alone,
            that never waits for the device.
        model: whose parameters and buffers the step changes.
        optimizer: whose state the step changes.
        recorder: what records.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recorder: Recorder,
    ) -> None:
        self.step, self.model, self.optimizer, self.recorder = step, model, optimizer, recorder
        self.inputs: list[Tensor | None] | None = None

    def __call__(self, inputs: Iterable[Tensor | None]) -> Any:
        """Makes the step on inputs; returns its outputs, which the next call writes over."""
        given = list(inputs)
        if self.inputs is None:
            self.inputs = [None if tensor is None else tensor.clone() for tensor in given]
            with uncached_autocast(self.model), unchanged(self.model, self.optimizer):
                self.recorder.warm_up(self._work)
            with uncached_autocast(self.model):
                self.recorder.record(self._work)
        static = [tensor for tensor in self.inputs if tensor is not None]
        copy_into(static, [tensor for tensor in given if tensor is not None])
        return self.recorder.replay()

    def _work(self) -> Any:
        return self.step(*self.inputs or ())


class ReplayedAdamW(torch.optim.AdamW):
    """AdamW whose step a trainer can count although it is part of what is replayed.

    Where ``replay`` is set, the next ``step`` calls it instead and gives what it gives.
    """

    replay: Callable[[], Any] | None = None
    _warned_capturable_if_run_uncaptured = True  # torch's flag: warming up runs a capturable step on purpose

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, or one replay."""
        replay, self.replay = self.replay, None
        if replay is None:
            return super().step(closure)
        if closure is not None:
            closure()
        return replay()


def can_record(device: torch.device) -> bool:
    """Whether work on a device can be recorded."""
    return device.type == "cuda"


def new_recorder(device: torch.device) -> Recorder:
    """What records on a device, one for which `can_record` is true."""
    with torch.cuda.device(device):
        return CudaRecorder()


@contextmanager
def unchanged(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Puts parameters, buffers, the optimizer's state and the random generators back to what they were."""
    kept = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    states = [state for state in optimizer.state.values() for state in state.values() if isinstance(state, Tensor)]
    kept += [(tensor, tensor.clone()) for tensor in states]
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    known = {id(tensor) for tensor, _ in kept}
    with torch.no_grad():
        for tensor, before in kept:
            tensor.copy_(before)
        for state in optimizer.state.values():
            for tensor in state.values():
                if isinstance(tensor, Tensor) and id(tensor) not in known:
                    tensor.zero_()  # AdamW's state before its first step


@contextmanager
def uncached_autocast(model: nn.Module) -> Iterator[None]:
    """Autocast as it is, without its cache of cast weights, which a recording would keep for ever."""
    kind = next(model.parameters()).device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
        yield
