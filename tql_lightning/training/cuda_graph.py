"""Records a gradient step once as a CUDA graph and replays it.

Loss, backward pass, clipping, AdamW and the target critic's step become one launch. Small critics then do not wait for
Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tql_lightning.system.private_api import copy_into

WARM_UP_STEPS = 3  # torch's own number; libraries initialise, and the optimizer allocates its state


class Recorder(Protocol):
    """Records work on a device and replays it."""

    def warm_up(self, work: Callable[[], object]) -> None:
        """Runs the work on a stream of its own before recording."""

    def record(self, work: Callable[[], Any]) -> None:
        """Records the work; whether it also runs is up to the recorder."""

    def replay(self) -> Any:
        """Runs the recorded work; the next replay overwrites the memory of its result."""


class CudaRecorder:
    """Records a CUDA graph on the current device, on a stream of its own, which CUDA requires."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        # torch's default capture stream stays on the device of the process's first capture.
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
        # Otherwise a CUDA call of another thread, such as the one that pins memory, would invalidate the capture.
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            self.outputs = work()

    def replay(self) -> Any:
        """See `Recorder`."""
        self.graph.replay()
        return self.outputs


class GraphedStep:
    """A gradient step that its first call records and every call replays.

    Args:
        step: Gradient step that depends only on its tensors, of fixed shapes, on the parameters and on the optimizer's
            state, and never waits for the device.
        model: Model whose parameters and buffers the step changes.
        optimizer: Optimizer whose state the step changes.
        recorder: Recorder for the model's device.
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
        """Makes the step on inputs; the next call overwrites the memory of its outputs."""
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
    """AdamW that can replay a recorded update, so that Lightning counts the step.

    Where ``replay`` is set, the next ``step`` calls it instead and returns its result.
    """

    replay: Callable[[], Any] | None = None
    _warned_capturable_if_run_uncaptured = True  # silences torch's warning: the warm-up runs uncaptured on purpose

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step or one replay."""
        replay, self.replay = self.replay, None
        if replay is None:
            return super().step(closure)
        if closure is not None:
            closure()
        return replay()


def can_record(device: torch.device) -> bool:
    """Whether a device supports recording."""
    return device.type == "cuda"


def new_recorder(device: torch.device) -> Recorder:
    """Makes a recorder for a device that `can_record`."""
    with torch.cuda.device(device):
        return CudaRecorder()


@contextmanager
def unchanged(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Restores parameters, buffers, the optimizer's state and the random generators after the block."""
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
                    tensor.zero_()  # value of AdamW's state before its first step


@contextmanager
def uncached_autocast(model: nn.Module) -> Iterator[None]:
    """Disables autocast's cache of cast weights, whose stale copies a recording would reuse in every replay."""
    kind = next(model.parameters()).device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
        yield
