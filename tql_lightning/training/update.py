"""Runs one update of any algorithm: losses, backward pass, clipping, optimizer step; plain, compiled or replayed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from tql_lightning.batch import UpdateSpec
from tql_lightning.nn.structured import advance_guides, guided_layers
from tql_lightning.system.private_api import uncast_backward
from tql_lightning.system.signals import SignalGuard
from tql_lightning.training.cuda_graph import GraphedStep, ReplayedAdamW, new_recorder
from tql_lightning.training.distributed import mean_over_processes
from tql_lightning.training.execution import Execution
from tql_lightning.training.optimisation import Optimisation, ParameterGroup

Inputs = dict[str, Tensor]  # tensors that depend on the update, such as entropy targets


class Losses(NamedTuple):
    """Losses of one minibatch.

    Attributes:
        total: Scalar to minimise.
        metrics: Scalars to log by name, without gradient; empty unless requested.
        diagnostics: Tensors of any shape for callbacks by name, without gradient, such as attention_entropy (L, 2).

    Examples:
        >>> Losses(torch.ones(()), metrics={"td_loss": torch.ones(())}, diagnostics={}).total
        tensor(1.)
    """

    total: Tensor
    metrics: dict[str, Tensor]
    diagnostics: dict[str, Tensor]

    def detached(self, norms: dict[str, Tensor]) -> Losses:
        """Detaches all tensors and adds gradient norms to the metrics."""
        return Losses(
            self.total.detach(),
            {name: value.detach() for name, value in self.metrics.items()} | norms,
            {name: value.detach() for name, value in self.diagnostics.items()},
        )

    def copied(self) -> Losses:
        """Copies all tensors, since the next replay overwrites them."""
        return Losses(
            self.total.clone(),
            {name: value.clone() for name, value in self.metrics.items()},
            {name: value.clone() for name, value in self.diagnostics.items()},
        )


def collected(total: Tensor, metrics: dict[str, Tensor], diagnostics: dict[str, Tensor], with_metrics: bool) -> Losses:
    """Makes `Losses` with detached metrics, or none without ``with_metrics``."""
    kept = {name: value.detach() for name, value in metrics.items()} if with_metrics else {}
    return Losses(total, kept, diagnostics)


class Trainable(Protocol):
    """The part of `Algorithm` that an update uses."""

    execution: Execution
    optimisation: Optimisation

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def update_spec(self) -> UpdateSpec: ...  # noqa: D102

    def parameter_groups(self) -> list[ParameterGroup]: ...  # noqa: D102

    def losses(  # noqa: D102
        self,
        batch: Any,
        noise: Any,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = ...,
    ) -> Losses: ...

    def before_step(self, inputs: Inputs) -> None: ...  # noqa: D102

    def after_step(self, inputs: Inputs) -> None: ...  # noqa: D102

    def manual_backward(self, loss: Tensor) -> None: ...  # noqa: D102

    def optimizers(self) -> Any: ...  # noqa: D102


class UpdateRunner:
    """Runs the updates of one fit, as the algorithm's `Execution` asks.

    Args:
        algorithm: Algorithm to train.
    """

    def __init__(self, algorithm: Trainable) -> None:
        self.algorithm = algorithm
        self.groups = algorithm.parameter_groups()
        self.guided = guided_layers(cast("nn.Module", algorithm))
        self.guard = SignalGuard()  # no signal handler runs between target networks and the optimizer's step
        self._graphed: GraphedStep | None = None
        self._measure, self._norms = False, dict[str, Tensor]()

    def run(self, batch: Any, noise: Any, inputs: Inputs, with_metrics: bool, kept: bool = True) -> Losses:
        """Runs or replays one update; Lightning counts one optimizer step either way.

        Args:
            batch: Transitions, leading dimension (B,).
            noise: Random numbers, leading dimension (B,).
            inputs: Tensors that depend on the update.
            with_metrics: Whether to compute values that are only logged.
            kept: Whether to copy the result of a replay, which the next replay overwrites.
        """
        optimizer = self.algorithm.optimizers()
        if not self.algorithm.execution.cuda_graphs:
            return self.step(batch, noise, inputs, optimizer, with_metrics)
        if self._graphed is None:
            self._graphed = self.record(optimizer.optimizer, list(inputs))
        optimizer.optimizer.replay = partial(self._graphed, (*batch, *noise, *inputs.values()))
        with self.guard:
            losses: Losses = optimizer.step()
            self._advance_guides()
        losses = losses if with_metrics else Losses(losses.total, {}, losses.diagnostics)
        return losses.copied() if kept else losses

    def clip(self) -> None:
        """Measures and clips gradients; called between unscaling and the optimizer's step."""
        self._norms = self.algorithm.optimisation.clip(self.groups, self._measure)

    def step(self, batch: Any, noise: Any, inputs: Inputs, optimizer: Any, with_metrics: bool) -> Losses:
        """Makes an update without waiting for the device; for the arguments see `run`."""
        optimizer.zero_grad()
        losses = self.losses(batch, noise, inputs, with_metrics)
        self._backward(losses.total)
        self._measure = with_metrics
        with self.guard:
            self.algorithm.before_step(inputs)
            if self.algorithm.execution.cuda_graphs:  # else Lightning calls it, after unscaling
                self.clip()
            optimizer.step()
            self.algorithm.after_step(inputs)
            if not self.algorithm.execution.cuda_graphs:  # else after each replay
                self._advance_guides()
        return losses.detached(self._norms if with_metrics else {})

    def _advance_guides(self) -> None:
        """Counts the update in self-guided layers; with DDP's static graph guides stay in the graph."""
        advance_guides(self.guided, may_leave_out=not torch.distributed.is_initialized())

    def record(self, optimizer: ReplayedAdamW, input_names: list[str]) -> GraphedStep:
        """Makes the CUDA graph of a step, a function of the fields of batch, noise and inputs in this order."""
        spec = self.algorithm.update_spec
        batch_size, noise_size = len(spec.batch._fields), len(spec.noise._fields)

        def work(*tensors: Tensor) -> Losses:
            batch = spec.batch(*tensors[:batch_size])
            noise = spec.noise(*tensors[batch_size : batch_size + noise_size])
            inputs = dict(zip(input_names, tensors[batch_size + noise_size :], strict=True))
            return self.step(batch, noise, inputs, optimizer, with_metrics=True)

        model: Any = self.algorithm
        return GraphedStep(work, model, optimizer, new_recorder(model.device))

    def _backward(self, loss: Tensor) -> None:
        """Runs Lightning's backward pass outside autocast, in the number types of the forward pass."""
        # Lightning wraps the whole step in autocast, which would also round what the losses compute in float32.
        device = self.algorithm.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            self.algorithm.manual_backward(loss)

    def losses(self, batch: Any, noise: Any, inputs: Inputs, with_metrics: bool) -> Losses:
        """Computes the losses of this process's rows; always with metrics when compiled, to compile one graph."""
        if not self.algorithm.execution.compile:
            return self.algorithm.losses(batch, noise, inputs, with_metrics, whole_mean=mean_over_processes)
        losses = self._compiled(batch, noise, inputs)
        return losses if with_metrics else Losses(losses.total, {}, losses.diagnostics)

    @cached_property
    def _compiled(self) -> Callable[[Any, Any, Inputs], Losses]:
        whole = partial(self.algorithm.losses, whole_mean=mean_over_processes)
        compiled = torch.compile(whole, fullgraph=True, dynamic=False)
        without_autocast = uncast_backward()

        def run(batch: Any, noise: Any, inputs: Inputs) -> Losses:
            # This call also compiles the backward pass; see `_backward` for why without autocast.
            with without_autocast():
                outputs: Losses = compiled(batch, noise, inputs)
            return outputs

        return run
